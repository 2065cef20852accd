# ruff: noqa: E501  (wordings are data; one per line reads better than wrapped)
"""Generated contracts: clauses with facts drawn by program, and the questions that people ask about them.

Every topic has wordings of its clause and wordings of the question; a contract is a selection of topics in numbered
sections. Names in braces are slots: parties ({A} serves, {B} pays), periods, amounts, places, dates.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from demo.episodes import Document, Fact


@dataclass(frozen=True)
class Topic:
    key: str
    heading: str  # alternatives separated by |
    clauses: str  # one per line
    questions: str  # one per line
    kinds: str = ""  # kinds of contract it belongs to; empty for all


def lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines() if line.strip())


TOPICS = (
    Topic("governing_law", "Governing Law|Applicable Law|Choice of Law", """
        This Agreement shall be governed by and construed in accordance with the laws of {state}, without regard to its conflict of laws principles.
        The laws of {state} govern this Agreement and all disputes arising out of it.
        This Agreement and any non-contractual obligation arising from it are subject to the law of {state}.
        The validity and interpretation of this Agreement are determined under the laws of {state}.
        This Agreement is governed by the law of {state}, excluding the United Nations Convention on Contracts for the International Sale of Goods.
        The parties agree that the law of {state} applies to this Agreement and to its formation.
        This contract shall be interpreted and enforced according to the laws of {state}.
        """, """
        Which law governs the agreement?
        What is the governing law?
        Which state's law applies to this contract?
        Under which law is the contract interpreted?
        What law applies?
        The laws of which jurisdiction govern disputes?
        Which country's law applies?
        What is the choice of law?
        What law governs this contract?
        Which jurisdiction's laws apply to the agreement?
        Is the agreement governed by New York law?
        Whose law applies to the contract?
        """),
    Topic("venue", "Jurisdiction|Venue|Courts", """
        The courts located in {city} shall have exclusive jurisdiction over any dispute arising out of this Agreement.
        Each party submits to the exclusive jurisdiction of the state and federal courts sitting in {city}.
        Any action relating to this Agreement must be brought in the competent courts of {city}.
        The parties irrevocably agree that the courts of {city} shall settle any claim connected with this Agreement.
        Exclusive place of jurisdiction is {city}.
        """, """
        Which courts have jurisdiction?
        Where must a lawsuit be filed?
        What is the venue for disputes?
        In which city can the parties sue?
        Where are disputes litigated?
        Which court hears disputes?
        Where would a dispute be heard?
        Which courts are competent?
        Do the courts have exclusive jurisdiction?
        """),
    Topic("arbitration", "Dispute Resolution|Arbitration", """
        Any dispute that cannot be settled amicably shall be finally resolved by arbitration in {city} under the rules of the {arbiter} by {one_three} arbitrator(s).
        All controversies arising from this Agreement shall be submitted to binding arbitration administered by the {arbiter}, with its seat in {city}.
        Disputes shall first be referred to senior executives for {days}, and thereafter to arbitration before the {arbiter} in {city}.
        Disputes which are not resolved by negotiation will be decided by an arbitral tribunal seated in {city}, and the language of the arbitration is English.
        """, """
        How are disputes resolved?
        Is there an arbitration clause?
        Where does arbitration take place?
        Which institution administers the arbitration?
        What happens if the parties have a dispute?
        Do disputes go to arbitration?
        How many arbitrators decide a dispute?
        What is the seat of arbitration?
        How will a disagreement between the parties be settled?
        Must disputes be arbitrated?
        """),
    Topic("mediation", "Escalation|Mediation", """
        Before starting proceedings the parties shall attempt in good faith to settle the dispute by mediation within {days} of a written request.
        The parties shall escalate any disagreement to their project managers, who shall meet within {days} to resolve it.
        """, """
        Must the parties mediate before going to court?
        Is there an escalation procedure for disagreements?
        How long do the parties have to settle a dispute amicably?
        """),
    Topic("term", "Term|Term of Agreement|Duration", """
        This Agreement commences on the Effective Date and continues for an initial term of {years}, unless terminated earlier.
        The initial term of this Agreement is {years} from {date}.
        This Agreement shall remain in force until {date}, unless it is terminated earlier in accordance with its terms.
        The Agreement expires on {date}.
        The term of this Agreement begins on {date} and ends on {date2}.
        This lease runs for a term of {years} beginning on {date}.
        Unless ended sooner, this Agreement will stay in effect for {years} after the Effective Date.
        This Agreement begins on the Effective Date and runs for a period of {months}.
        The initial term is {months}, starting on {date}.
        This Agreement shall terminate on {date} unless extended by the parties in writing.
        """, """
        When does the agreement expire?
        How long is the term of the agreement?
        What is the initial term?
        What is the duration of the contract?
        When does the contract end?
        How long does this agreement last?
        On what date does the initial term expire?
        For how long is the contract in force?
        What is the expiration date?
        How long does the lease run?
        What is the length of the initial term?
        How many years does the agreement run?
        When does the subscription end?
        How long is the employment agreement in effect?
        When will this agreement terminate?
        What is the term?
        """),
    Topic("renewal", "Renewal|Renewal Term|Extension", """
        Upon expiry of the initial term this Agreement renews automatically for successive periods of {years}.
        Thereafter this Agreement shall be extended automatically for further terms of {months} each.
        {B} may extend the term for one additional period of {years} by written request.
        This Agreement does not renew automatically and may be extended only by a written agreement of the parties.
        At the end of each term this Agreement is renewed for a further {years}, unless one of the parties objects.
        {B} has the option to renew this Agreement for up to two further terms of {years} each.
        """, """
        Does the agreement renew automatically?
        What is the renewal term?
        How long is each renewal period?
        What happens after the initial term?
        Can the contract be extended?
        Is there an automatic renewal?
        How is the term extended?
        Is there an option to renew?
        How often does the agreement renew?
        Can the tenant renew the lease?
        Does the subscription renew by itself?
        """),
    Topic("renewal_notice", "Non-Renewal|Notice of Non-Renewal", """
        Either party may prevent renewal by giving written notice of non-renewal at least {days} before the end of the then-current term.
        The Agreement will not renew if a party notifies the other of its intention not to renew no later than {days} prior to expiration.
        A party that does not wish to renew must inform the other in writing at least {days} before the current term ends.
        Renewal takes place unless one party gives the other {days} notice that it does not want this Agreement to continue.
        """, """
        How much notice is needed to stop the renewal?
        What is the notice period for non-renewal?
        How can a party prevent automatic renewal?
        When must notice of non-renewal be given?
        What notice is required to terminate renewal?
        How far in advance must a party opt out of renewal?
        How many days before the end of the term must non-renewal be notified?
        By when must we give notice if we do not want to renew?
        """),
    Topic("effective_date", "Effective Date|Commencement", """
        This Agreement takes effect on {date} (the "Effective Date").
        The effective date of this Agreement is {date}.
        This Agreement becomes effective as of {date}, regardless of the date of signature.
        """, """
        When does the agreement take effect?
        What is the effective date?
        When does the contract start?
        From what date is the agreement effective?
        When does the contract become effective?
        """),
    Topic("termination_convenience", "Termination for Convenience|Termination without Cause|Termination", """
        Either party may terminate this Agreement for any reason or no reason upon {days} prior written notice.
        {B} may terminate this Agreement for convenience at any time by giving {A} at least {days} written notice.
        {A} is entitled to end this Agreement without cause on not less than {days} notice in writing.
        This Agreement may be terminated by either party without cause by {months} written notice to the other.
        Either party may end this Agreement at any time by giving {days} notice to the other.
        {B} may cancel the services at any time, without giving reasons, on {days} written notice.
        This Agreement can be terminated by either side on {months} notice.
        Upon {days} notice in writing, either party may withdraw from this Agreement without liability.
        """, """
        How much notice is needed to terminate?
        Can a party terminate without cause?
        Can the agreement be terminated for convenience?
        What notice must be given to end the contract?
        How can the customer terminate the agreement?
        What is the notice period for termination?
        Is there a right to terminate for any reason?
        How many days' notice for termination for convenience?
        Can we get out of this contract early?
        How can the agreement be terminated?
        How much notice must be given to terminate the agreement?
        May the client terminate at any time?
        Can either party walk away from the contract?
        What notice is required to terminate without cause?
        How many days of notice for termination?
        How can the employment be terminated?
        Can the customer cancel?
        What is the notice period?
        """),
    Topic("cure", "Termination for Cause|Termination for Breach|Default and Cure", """
        Either party may terminate this Agreement if the other commits a material breach and fails to cure it within {days} after written notice.
        If a party breaches a material obligation and does not remedy the breach within {days} of being notified, the other party may terminate with immediate effect.
        A party in default shall have {days} from receipt of notice to cure the default, failing which this Agreement may be terminated.
        Where a party materially fails to perform, the other may terminate by notice if the failure has not been corrected within {days} of a written demand.
        Either party may terminate for material breach that remains uncured {days} after notice describing the breach.
        If the breach can be remedied, the breaching party has {days} to remedy it before the other party may terminate.
        """, """
        How many days to cure a breach?
        What is the cure period?
        How long does a party have to remedy a material breach?
        Can the agreement be terminated for material breach?
        What happens if a party commits a material breach?
        When can a party terminate for cause?
        Within what time must a default be cured?
        How much time is there to fix a breach?
        What is the period to cure a default?
        How long is the cure period after notice of breach?
        When may the agreement be terminated for breach?
        Is there a grace period for breaches?
        What happens if the supplier breaches the contract?
        """),
    Topic("insolvency", "Insolvency|Bankruptcy", """
        Either party may terminate this Agreement immediately if the other becomes insolvent, files for bankruptcy or makes an assignment for the benefit of creditors.
        This Agreement ends automatically if a receiver or trustee is appointed over the assets of a party and is not discharged within {days}.
        """, """
        What happens if a party becomes insolvent?
        Can the contract be terminated in case of bankruptcy?
        Does bankruptcy end the agreement?
        Is insolvency a ground for termination?
        """),
    Topic("effect_of_termination", "Effect of Termination|Consequences of Termination|Post-Termination", """
        Upon termination {A} shall provide transition assistance to {B} for up to {days} at its then-current rates.
        On expiry or termination {A} shall deliver all work in progress to {B} within {days}, and {B} shall pay for services rendered until that date.
        Following termination {B} may sell off its remaining inventory for a period of {months}.
        Upon termination of this Agreement, {B} shall immediately cease all use of the {product} and pay all amounts accrued.
        When this Agreement ends {A} must hand over all records and assist in moving the {work} to a new provider.
        Termination does not affect rights accrued before it, and {B} shall pay all outstanding invoices within {days}.
        """, """
        What must happen after termination?
        What are the obligations after the agreement ends?
        Is there transition assistance on termination?
        What are the consequences of termination?
        What services must be provided after termination?
        May remaining inventory be sold after termination?
        What happens when the contract ends?
        What must the supplier do when the agreement ends?
        What happens on expiry?
        What are the parties' duties upon termination?
        Is help with transition provided?
        """),
    Topic("survival", "Survival", """
        Sections relating to confidentiality, liability and payment survive the termination of this Agreement for {years}.
        The provisions which by their nature are intended to survive shall remain in effect after expiration or termination.
        The clauses on confidentiality, intellectual property and indemnity continue to apply after this Agreement ends.
        """, """
        Which provisions survive termination?
        Do any clauses survive the end of the agreement?
        What survives expiration?
        Which clauses remain in force after termination?
        """),
    Topic("payment_term", "Payment Terms|Payment|Terms of Payment", """
        {B} shall pay each undisputed invoice within {days} of receipt.
        Invoices are due and payable {days} after the invoice date.
        All invoices issued by {A} must be settled no later than {days} from the date of the invoice.
        Payment shall be made by wire transfer within {days} following receipt of a correct invoice.
        {B} shall settle invoices in full within {days} of their date.
        Payment is due net {days}.
        Each invoice shall be paid by {B} not later than {days} after it has been received.
        All sums payable under this Agreement are due within {days} of invoice.
        """, """
        When are invoices due?
        What are the payment terms?
        How many days does the customer have to pay an invoice?
        When must payment be made?
        How long do we have to pay?
        Within how many days must invoices be paid?
        By when does payment have to be made?
        What is the payment deadline?
        How soon must invoices be paid?
        When is payment due?
        How many days after receipt must an invoice be paid?
        What is the due date for invoices?
        When does the client have to pay?
        """),
    Topic("fee", "Fees|Price|Compensation|Charges", """
        In consideration of the {work}, {B} shall pay {A} a fixed fee of {amount}.
        {B} shall pay {A} a monthly fee of {amount} for the {work}.
        The total price payable under this Agreement is {amount}, exclusive of taxes.
        {A} shall charge {B} for the {work} at the rate of {amount} per hour.
        The annual subscription fee is {amount}, payable in advance.
        For the {work} {B} pays {A} {amount} per month.
        The fees for the {work} amount to {amount} per year, payable quarterly.
        The purchase price of the {goods} is {amount} per unit.
        {B} agrees to pay a one-time fee of {amount} on signature and {amount} on completion.
        """, """
        What is the fee?
        How much does the customer pay?
        What is the price?
        How much are the fees under the agreement?
        What is the monthly fee?
        What is the hourly rate?
        What does the service cost?
        What is the total price?
        How much is the subscription?
        How much does the client pay for the services?
        What are the fees for the services?
        What does the buyer pay per unit?
        What is the purchase price?
        How much will it cost?
        What is the annual fee?
        How much is the contractor paid?
        What compensation does the consultant receive?
        """),
    Topic("invoice", "Invoicing|Invoices", """
        {A} shall issue invoices monthly in arrears, each stating the services performed and the hours spent.
        {A} will invoice {B} on the {nth} day of each calendar month for the previous month.
        Invoices shall be sent quarterly in advance to the accounts department of {B}.
        {A} bills {B} at the end of every month.
        """, """
        How often are invoices issued?
        When does the supplier send invoices?
        What must an invoice contain?
        Is billing monthly or quarterly?
        How is the customer billed?
        How frequently does the provider invoice?
        When are invoices sent?
        """),
    Topic("late_interest", "Late Payment|Interest|Overdue Amounts", """
        Amounts not paid when due bear interest at the rate of {pct} per month until paid in full.
        Late payments shall accrue interest at {pct} per annum from the due date.
        If {B} fails to pay on time, {A} may charge interest on the overdue amount at the lower of {pct} per month and the maximum rate permitted by law.
        Overdue sums are subject to a late charge of {pct} for each month of delay.
        Any amount that is overdue carries interest of {pct} per month.
        If payment is delayed, {B} owes default interest of {pct} per annum on the outstanding sum.
        {A} may add a late payment charge of {pct} per month to overdue invoices.
        Sums unpaid after the due date shall incur a finance charge equal to {pct} monthly.
        """, """
        What interest applies to late payments?
        What happens if payment is late?
        Is there a late fee?
        What is the interest rate on overdue amounts?
        What is charged on overdue invoices?
        What is the penalty for late payment?
        What interest is charged on late payments?
        What is the late payment interest rate?
        Does interest accrue on unpaid invoices?
        How much interest is owed on overdue payments?
        What are the consequences of paying late?
        What late charge applies to overdue rent?
        """),
    Topic("disputed_invoice", "Disputed Amounts|Invoice Disputes", """
        {B} may withhold an amount that it disputes in good faith, provided that it notifies {A} in writing within {days} of the invoice.
        If {B} disputes an invoice it shall pay the undisputed part and give reasons for the dispute within {days}.
        """, """
        Can the customer dispute an invoice?
        How is a disputed invoice handled?
        How long does the customer have to contest an invoice?
        May payment be withheld?
        """),
    Topic("price_restriction", "Price Adjustment|Price Increases", """
        {A} may increase its prices once in each calendar year by no more than {pct} upon {days} notice.
        The prices shall remain fixed for the first {months} and may thereafter be adjusted by not more than {pct} per year.
        No price increase takes effect without {days} prior written notice to {B}.
        {A} shall not raise the fees during the initial term, and afterwards not by more than {pct} a year.
        """, """
        Can the supplier raise its prices?
        How much may prices increase?
        Is there a limit on price increases?
        When can the fees be adjusted?
        Are the prices fixed?
        What restrictions apply to price changes?
        Can the provider increase the fees?
        By how much can the rent be increased?
        Is there a cap on fee increases?
        """),
    Topic("taxes", "Taxes", """
        All fees are exclusive of value added, sales and use taxes, which shall be borne by {B}.
        Each party is responsible for its own income taxes, and {B} shall pay all sales taxes on the {work}.
        If withholding tax is required, {B} shall gross up the payment so that {A} receives the full amount.
        All sums are stated net of taxes, which {B} pays in addition.
        """, """
        Who pays taxes?
        Are taxes included in the price?
        Who bears sales tax?
        What about withholding tax?
        Are the fees exclusive of VAT?
        Who is responsible for taxes?
        Does the price include VAT?
        """),
    Topic("expenses", "Expenses|Reimbursement", """
        {B} shall reimburse {A} for reasonable travel expenses approved in advance, up to {amount} per month.
        {A} bears its own expenses in performing this Agreement unless {B} has agreed otherwise in writing.
        Documented out-of-pocket expenses are reimbursed within {days} after submission of receipts.
        {B} pays back reasonable expenses that {A} incurs with prior approval and proves by receipts.
        """, """
        Are expenses reimbursed?
        Who pays travel expenses?
        How are out-of-pocket costs treated?
        What is the limit on reimbursable expenses?
        Does the consultant get expenses back?
        Which expenses are reimbursed?
        Does the company reimburse travel?
        """),
    Topic("setoff", "Set-Off", """
        {B} shall not set off any claim against amounts owed to {A} unless the claim is undisputed or finally adjudicated.
        {B} may set off against any payment the amounts that {A} owes to it.
        """, """
        Is set-off allowed?
        Can the customer set off claims against payments?
        May amounts owed be offset?
        """),
    Topic("cap_on_liability", "Limitation of Liability|Liability Cap|Liability", """
        The aggregate liability of either party under this Agreement shall not exceed {amount}.
        {A}'s total liability arising out of this Agreement is limited to the fees paid by {B} in the {months} preceding the claim.
        In no event shall the total liability of {A} exceed {pct_big} of the amounts paid under this Agreement.
        The maximum liability of a party for all claims is capped at {amount} in each contract year.
        Neither party's aggregate liability under or in connection with this Agreement will exceed {amount}.
        The liability of {A}, whether in contract, tort or otherwise, is limited to {amount}.
        {A} shall not be liable for more than the total fees paid in the {months} before the event giving rise to the claim.
        Except as provided below, each party's cumulative liability is limited to {pct_big} of the annual fees.
        """, """
        What is the cap on liability?
        Is liability limited?
        What is the maximum liability?
        How much can be recovered in damages?
        What is the limitation of liability?
        To what amount is the supplier's liability capped?
        Does the contract cap damages?
        What is the liability limit?
        How much is the vendor liable for at most?
        What is the limit on the provider's liability?
        How is liability limited?
        What is the maximum amount of damages?
        Is there a cap on damages?
        What is the total liability of the supplier?
        How much liability does the contractor have?
        Up to what amount is a party liable?
        """),
    Topic("indirect_damages", "Exclusion of Damages|Consequential Damages|Limitation of Liability", """
        Neither party shall be liable for any indirect, incidental, special or consequential damages, including loss of profits.
        In no event is {A} liable for lost profits, loss of data or punitive damages, even if advised of their possibility.
        A party is not responsible for loss of profit, loss of revenue or any other consequential loss suffered by the other.
        Under no circumstances shall either party be liable for special, exemplary or consequential damages.
        """, """
        Are consequential damages excluded?
        Is a party liable for lost profits?
        Which damages are excluded?
        Are indirect damages recoverable?
        Can we claim loss of profit?
        Can a party recover consequential damages?
        Is liability for lost profits excluded?
        What types of loss are excluded?
        """),
    Topic("uncapped_liability", "Exceptions to Limitation|Unlimited Liability", """
        The limitations of liability do not apply to fraud, wilful misconduct, breach of confidentiality or the indemnities in this Agreement.
        Nothing in this Agreement limits liability for death or personal injury caused by negligence or for fraud.
        Liability for gross negligence and intentional misconduct is unlimited.
        """, """
        What is excluded from the liability cap?
        For what is liability unlimited?
        Are there exceptions to the limitation of liability?
        When does the cap on liability not apply?
        Is liability uncapped in any case?
        """),
    Topic("indemnity", "Indemnification|Indemnity", """
        {A} shall indemnify, defend and hold harmless {B} from all third-party claims arising out of the infringement of intellectual property rights by the {product}.
        Each party shall indemnify the other against losses resulting from its negligence or breach of this Agreement.
        {B} agrees to hold {A} harmless from any claim caused by the use of the {product} contrary to this Agreement.
        {A} will defend {B} against any claim by a third party that the {product} infringes a patent or copyright, and will pay the damages finally awarded.
        {B} shall indemnify {A} from and against all liabilities, costs and expenses arising from its breach of this Agreement.
        {A} shall compensate {B} for all damages and legal fees resulting from claims of third parties caused by its acts or omissions.
        """, """
        Is there an indemnity?
        Who indemnifies whom?
        What does the indemnification cover?
        Who is responsible for third-party claims?
        Does the supplier indemnify against infringement claims?
        Who defends third party infringement claims?
        What does the supplier indemnify the customer for?
        What are the indemnification obligations?
        Who pays if a third party sues?
        Does the tenant indemnify the landlord?
        When must a party indemnify the other?
        """),
    Topic("indemnity_procedure", "Indemnification Procedure|Conduct of Claims", """
        The indemnified party shall notify the indemnifying party of a claim within {days} and shall give it sole control of the defence.
        The indemnifying party may not settle a claim without the prior written consent of the indemnified party.
        """, """
        What is the procedure for indemnification claims?
        Who controls the defence of a claim?
        How soon must an indemnified party give notice of a claim?
        Can a claim be settled without consent?
        """),
    Topic("liquidated_damages", "Liquidated Damages|Delay Damages|Termination Fee", """
        For each week of delay {A} shall pay {B} liquidated damages of {amount}, up to a maximum of {pct_big} of the price.
        If {B} terminates before the end of the term, it shall pay a termination fee of {amount}.
        If the milestone is missed, {A} owes a penalty of {pct} of the contract price for every day of delay.
        If delivery is late, the price is reduced by {pct} for each week of delay.
        A party that terminates early without cause shall pay {amount} as liquidated damages.
        """, """
        Are there liquidated damages?
        What is the penalty for delay?
        Is there an early termination fee?
        What must be paid for late delivery?
        How much are delay damages?
        What does early termination cost?
        What is payable for delay?
        What is the fee for terminating early?
        Is there a contractual penalty?
        """),
    Topic("insurance", "Insurance", """
        {A} shall maintain commercial general liability insurance with limits of not less than {amount} per occurrence.
        Throughout the term {A} shall carry professional liability insurance of at least {amount} and name {B} as an additional insured.
        {B} shall keep the {goods} insured against fire and theft for their full replacement value.
        At its own expense {A} shall obtain and keep in force public liability insurance in the amount of {amount}.
        {B} shall insure against liability for bodily injury and property damage with a combined limit of {amount}.
        {A} must hold workers' compensation and professional indemnity cover of at least {amount} per claim.
        """, """
        What insurance must be maintained?
        Is insurance required?
        How much insurance coverage is needed?
        What are the insurance requirements?
        What is the minimum insurance limit?
        Must the supplier carry liability insurance?
        Who has to be insured?
        How much insurance must the tenant carry?
        What insurance does the contractor need?
        What coverage must the supplier maintain?
        Which insurance policies are required?
        """),
    Topic("warranty", "Warranty|Warranties|Warranty Period", """
        {A} warrants that the {goods} will be free from defects in material and workmanship for {months} after delivery.
        The warranty period is {months} from acceptance.
        {A} warrants for a period of {days} that the {work} will conform to the specifications.
        {A} guarantees the {goods} against defects for a period of {years} from the date of delivery.
        For {days} after acceptance {A} warrants that the deliverables will perform as specified.
        The {goods} carry a warranty of {months}, beginning on the date of shipment.
        """, """
        How long is the warranty?
        What is the warranty period?
        What does the supplier warrant?
        Is there a warranty against defects?
        For how long are the products warranted?
        What is the duration of the warranty?
        How long are the goods under warranty?
        What warranty does the seller give?
        How long does the guarantee last?
        When does the warranty expire?
        """),
    Topic("warranty_remedy", "Remedies|Warranty Remedies", """
        If the {goods} do not conform to the warranty, {A} shall at its option repair or replace them free of charge.
        The sole remedy for defective {work} is re-performance or, failing that, a refund of the fees paid for it.
        """, """
        What is the remedy for defective goods?
        What happens if the warranty is breached?
        Will defective products be repaired or replaced?
        Can the buyer get a refund for defects?
        """),
    Topic("disclaimer", "Disclaimer", """
        EXCEPT AS EXPRESSLY STATED, {A} DISCLAIMS ALL WARRANTIES, INCLUDING MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE.
        The {product} is provided "as is" and {A} makes no warranty that it will operate without interruption or error.
        """, """
        Are implied warranties disclaimed?
        Is the product provided as is?
        Does the supplier exclude warranties?
        Is fitness for a particular purpose guaranteed?
        """),
    Topic("confidentiality", "Confidentiality|Confidential Information|Non-Disclosure", """
        The receiving party shall hold the Confidential Information in strict confidence and shall not disclose it to any third party without consent.
        Each party shall use the other's Confidential Information solely for the purposes of this Agreement and protect it with reasonable care.
        {A} shall keep secret all business and technical information that it receives from {B}.
        Neither party may reveal the other's confidential information to anyone except employees who need to know it.
        The Recipient undertakes not to disclose the Confidential Information and to use it only for the permitted purpose.
        Each party shall protect the confidential information of the other with the same care as its own.
        """, """
        What are the confidentiality obligations?
        How must confidential information be treated?
        Is there a duty of confidentiality?
        May confidential information be disclosed to third parties?
        For what may confidential information be used?
        Does the contract contain a non-disclosure obligation?
        What must the recipient do with confidential information?
        Who may see confidential information?
        Can information be shared with employees?
        How may the receiving party use the information?
        Is the information confidential?
        May a party disclose confidential information?
        """),
    Topic("confidentiality_term", "Duration of Confidentiality|Confidentiality Period", """
        The obligations of confidentiality continue for {years} after the termination of this Agreement.
        The duty of non-disclosure lasts for {years} from the date of each disclosure.
        Confidentiality obligations survive for {years} following expiration, and for trade secrets as long as they remain secret.
        The recipient's duties under this Agreement end {years} after the last disclosure.
        Information disclosed under this Agreement must be kept confidential for a period of {years}.
        The undertakings on secrecy remain binding for {years} after this Agreement ends.
        """, """
        How long do the confidentiality obligations last?
        How long must information be kept secret?
        When does the duty of confidentiality end?
        What is the duration of the confidentiality obligation?
        For how many years is information confidential?
        How long does confidentiality last?
        How long after termination does confidentiality continue?
        For how long must the recipient keep the information confidential?
        How many years does the secrecy obligation survive?
        """),
    Topic("confidentiality_exception", "Exceptions to Confidentiality|Exclusions", """
        Confidential Information does not include information that is or becomes public through no fault of the recipient or was already known to it.
        The obligation of confidence does not apply to information independently developed or lawfully received from a third party.
        """, """
        What is not confidential information?
        What are the exceptions to confidentiality?
        Which information is excluded from confidentiality?
        Is public information confidential?
        """),
    Topic("compelled_disclosure", "Compelled Disclosure", """
        If a party is required by law or court order to disclose Confidential Information, it shall notify the other party promptly so that it may seek a protective order.
        Disclosure compelled by a court or regulator is permitted, provided that {days} prior notice is given where lawful.
        """, """
        What if a court orders disclosure?
        Can confidential information be disclosed when required by law?
        What must be done before a legally required disclosure?
        What happens if a subpoena is received?
        """),
    Topic("return_information", "Return of Materials|Return or Destruction", """
        Upon request the recipient shall return or destroy all Confidential Information within {days} and certify that it has done so.
        Within {days} after termination each party shall return all documents and copies belonging to the other.
        At the end of this Agreement, or at any time on request, the recipient must give back or destroy the confidential materials.
        All copies of Confidential Information shall be erased or returned no later than {days} after termination.
        """, """
        Must confidential information be returned?
        What happens to confidential documents at the end?
        When must materials be returned or destroyed?
        Do we have to destroy copies?
        What happens to confidential information after termination?
        How quickly must confidential information be returned?
        Do materials have to be given back?
        """),
    Topic("ip_assignment", "Ownership of Work Product|Intellectual Property|Work Product", """
        All work product created by {A} under this Agreement shall be the sole and exclusive property of {B}.
        {A} hereby assigns to {B} all right, title and interest in the deliverables upon their creation.
        Upon full payment, ownership of all deliverables and the copyright in them passes to {B}.
        All inventions made by {A} in the course of its engagement belong to {B}.
        {B} shall own all right, title and interest in and to the results of the {work}.
        Everything that {A} creates in performing the {work} is a work made for hire and belongs to {B}.
        {A} transfers to {B} all intellectual property rights in the deliverables when they are paid for.
        All reports, designs and code prepared by {A} become the property of {B} on delivery.
        """, """
        Who owns the work product?
        Who owns the intellectual property?
        Who owns the deliverables?
        Does the customer own what is created?
        To whom do inventions belong?
        Who holds the copyright in the deliverables?
        Is intellectual property assigned?
        When does ownership of the deliverables pass?
        Who will own the results of the work?
        Who owns the inventions?
        Who owns the code that is written?
        Who owns the intellectual property created under the agreement?
        Does the employer own the employee's inventions?
        Is the work made for hire?
        To whom does the work product belong?
        """),
    Topic("background_ip", "Background Technology|Pre-Existing Materials|Reservation of Rights", """
        {A} retains all rights in its pre-existing materials and tools, and grants {B} a non-exclusive licence to use them with the deliverables.
        Each party remains the owner of the intellectual property that it held before the Effective Date.
        {A} reserves all rights in the {product} that are not expressly granted.
        """, """
        Who keeps pre-existing intellectual property?
        What about background technology?
        Who owns the tools of the supplier?
        Are rights in existing materials reserved?
        Does the vendor retain its own IP?
        """),
    Topic("joint_ip", "Joint Ownership|Joint Developments", """
        Inventions made jointly by the parties shall be owned jointly in equal shares.
        Any improvements developed together by the parties are their joint property, and each may use them without accounting to the other.
        """, """
        Who owns jointly developed inventions?
        Is there joint ownership of intellectual property?
        What happens with joint improvements?
        Do the parties share any intellectual property?
        """),
    Topic("license_grant", "License Grant|Grant of License|License", """
        {A} grants {B} a non-exclusive, worldwide license to use the {product} for its internal business purposes.
        Subject to payment, {A} hereby grants to {B} a limited right to install and use the {product} on up to {count} devices.
        {A} grants {B} an exclusive license under the Patents to make, use and sell the {goods} in the Territory.
        {B} is licensed to use the Trademarks of {A} in connection with the sale of the {goods}.
        {B} receives a non-exclusive and non-transferable right to access and use the {product} during the term.
        {A} hereby licenses the {product} to {B} for use by up to {count} named users.
        Subject to the terms of this Agreement, {B} may use the {product} solely for its own business.
        """, """
        What license is granted?
        What is the scope of the license?
        What may the licensee do with the software?
        Does the contract grant a license?
        Is the license exclusive?
        How may the licensed product be used?
        What rights does the licensee get?
        What right does the customer have to use the software?
        How may the customer use the platform?
        For what purpose may the software be used?
        What license does the licensor give?
        How many users are licensed?
        """),
    Topic("nontransferable_license", "License Restrictions|No Transfer", """
        The license is non-transferable and may not be sublicensed without the prior written consent of {A}.
        {B} shall not sublicense, rent, lease or transfer the {product} to any third party.
        {B} may not assign, resell or share its rights to the {product} with others.
        """, """
        Can the license be transferred?
        Is sublicensing allowed?
        May the licensee sublicense its rights?
        Is the license transferable?
        Can the software be passed on to a third party?
        May the customer resell the software?
        Can the licensee grant sublicenses?
        """),
    Topic("use_restriction", "Restrictions on Use|Acceptable Use", """
        {B} shall not reverse engineer, decompile or disassemble the {product}.
        {B} may not modify or create derivative works of the {product}, nor use it to build a competing product.
        The {product} may not be used for unlawful purposes or to send unsolicited messages.
        """, """
        Is reverse engineering allowed?
        What may the customer not do with the product?
        What are the restrictions on use?
        Can the software be modified?
        What use is prohibited?
        """),
    Topic("perpetual_license", "Perpetual License|License Term", """
        The license granted under this Section is perpetual and irrevocable.
        {A} grants {B} an irrevocable, royalty-free and perpetual right to use the deliverables.
        """, """
        Is the license perpetual?
        Is the license irrevocable?
        How long does the license last?
        Can the license be revoked?
        """),
    Topic("affiliate_license", "Affiliates|Use by Affiliates", """
        {B} may permit its Affiliates to use the {product} under the terms of this Agreement.
        The rights granted to {B} extend to its Affiliates and subsidiaries.
        """, """
        May affiliates use the license?
        Can the customer's affiliates use the product?
        Does the license extend to subsidiaries?
        """),
    Topic("unlimited_license", "Enterprise License|Unlimited Use", """
        The license permits an unlimited number of users and installations within {B}'s enterprise.
        {B} may make unlimited use of the {product} during the term without additional charge.
        """, """
        Is there an unlimited license?
        How many users may use the software?
        Is there an enterprise-wide license?
        Is the number of users limited?
        """),
    Topic("escrow", "Source Code Escrow|Escrow", """
        {A} shall deposit the source code of the {product} with an escrow agent within {days}, to be released to {B} if {A} becomes insolvent.
        The escrow agent shall release the source code to {B} if {A} ceases to support the {product}.
        """, """
        Is there a source code escrow?
        When is the source code released?
        Must the source code be deposited with a third party?
        Does the customer get access to source code?
        """),
    Topic("royalty", "Royalties|Royalty", """
        {B} shall pay {A} a royalty of {pct} of Net Sales of the {goods}.
        The running royalty is {pct} of the net selling price, payable within {days} after the end of each quarter.
        {B} shall pay a royalty of {amount} for each unit sold.
        {B} shall pay a royalty equal to {pct} of gross revenue from sales of the {goods}.
        In return for the license, {B} owes {A} {pct} of the net sales in each quarter.
        """, """
        What is the royalty rate?
        How much royalty must be paid?
        What royalties does the licensee owe?
        What percentage of net sales is payable?
        When are royalties due?
        What royalty does the licensee pay?
        How are royalties calculated?
        What is the percentage of the royalty?
        """, "license distribution"),
    Topic("revenue_share", "Revenue Sharing|Profit Sharing|Commission", """
        The parties shall share the net revenue from the {goods}, with {pct_big} going to {A} and the remainder to {B}.
        {A} receives a commission of {pct} on every order that it procures.
        Profits and losses of the venture are shared between the parties in proportion to their interests.
        {A} is entitled to {pct_big} of the profits of the venture and {B} to the rest.
        For each sale {B} receives a commission equal to {pct} of the price.
        """, """
        How is revenue shared?
        What is the commission?
        How are profits divided between the parties?
        Is there a profit sharing arrangement?
        What share of the revenue does each party get?
        How are profits distributed?
        What percentage of revenue goes to each party?
        What commission is paid?
        How do the parties split profits?
        """),
    Topic("min_commitment", "Minimum Purchase|Minimum Commitment|Minimum Order", """
        {B} shall purchase at least {count} units of the {goods} in each contract year.
        During each year of the term {B} commits to a minimum spend of {amount}.
        Each order must be for a minimum quantity of {count} units.
        {B} undertakes to buy no fewer than {count} units per calendar quarter.
        The distributor shall purchase {goods} worth at least {amount} in every year of the term.
        """, """
        Is there a minimum purchase commitment?
        What is the minimum order quantity?
        How much must the buyer purchase?
        What minimum amount must be bought each year?
        Is there a minimum spend?
        What is the minimum annual purchase?
        How many units must the distributor buy?
        What quantity is the buyer obliged to buy?
        Are there minimum order quantities?
        """),
    Topic("volume_restriction", "Volume Limits|Excess Use|Overage", """
        If usage exceeds {count} transactions per month, {B} shall pay an additional fee of {amount} for every excess transaction.
        Use beyond {count} users requires the prior consent of {A} and an additional fee.
        """, """
        What happens if usage exceeds the limit?
        Is there an overage charge?
        Is there a volume restriction?
        What does excess usage cost?
        What is the usage limit?
        """),
    Topic("mfn", "Most Favored Customer|Price Parity", """
        If {A} offers more favourable prices to any other customer, it shall extend the same prices to {B}.
        {A} represents that the prices charged to {B} are no higher than those charged to any comparable customer.
        """, """
        Is there a most favored nation clause?
        Does the buyer get the best price given to others?
        Must the seller offer its most favourable terms?
        What if another customer gets better prices?
        """),
    Topic("exclusivity", "Exclusivity|Exclusive Rights", """
        During the term {B} shall purchase all of its requirements of the {goods} exclusively from {A}.
        {A} appoints {B} as its exclusive distributor of the {goods} in {territory}.
        {A} shall not provide the {work} to any competitor of {B} during the term.
        This Agreement is non-exclusive and either party may deal with others.
        {B} is the sole and exclusive reseller of the {goods} for the territory.
        {A} agrees not to supply the {goods} to any other person in {territory}.
        {B} shall not buy similar {goods} from anyone other than {A}.
        The rights granted to {B} are non-exclusive.
        """, """
        Is the agreement exclusive?
        Is there an exclusivity clause?
        Does the supplier have exclusive rights?
        Can the supplier work for others?
        Must the buyer buy only from the seller?
        Is the appointment exclusive?
        Is the distributor exclusive?
        Are the rights exclusive or non-exclusive?
        May the supplier appoint other distributors?
        Can the buyer purchase from other suppliers?
        Is it an exclusive relationship?
        """),
    Topic("territory", "Territory", """
        The territory consists of {territory}.
        {B} may sell the {goods} only in {territory} and shall not solicit customers elsewhere.
        "Territory" means {territory}.
        The appointment of {B} is limited to {territory}.
        """, """
        What is the territory?
        Where may the distributor sell the products?
        Which countries are covered?
        In which region does the agreement apply?
        What is the distributor's territory?
        What geographic area is covered?
        """, "license distribution jv"),
    Topic("non_compete", "Non-Competition|Non-Compete|Restrictive Covenants", """
        During the term and for {months} thereafter {A} shall not engage in any business that competes with {B}.
        {A} agrees not to compete with {B} within {territory} for a period of {years} after termination.
        For {years} after the end of the engagement {A} shall not work for a competitor of {B}.
        {A} shall refrain from any competing activity while this Agreement is in force and for {months} after it ends.
        Until {months} after termination {A} may not own, manage or be employed by a business similar to that of {B}.
        """, """
        Is there a non-compete?
        How long does the non-compete last?
        May a party compete with the other?
        Can the employee work for a competitor?
        What restrictions on competition apply?
        Is there a restriction on competing business?
        What is the non-compete period?
        Can the consultant work for competitors?
        Are the parties prevented from competing?
        What does the non-competition clause say?
        May the distributor sell competing products?
        """),
    Topic("nosolicit_employees", "Non-Solicitation of Employees|Non-Solicitation|No Hire", """
        Neither party shall solicit or hire the employees of the other during the term and for {months} afterwards.
        For a period of {months} after termination {A} shall not induce any employee of {B} to leave its employment.
        While this Agreement is in force and for {years} afterwards, neither party may employ or try to employ staff of the other.
        """, """
        Is there a non-solicitation clause?
        May a party hire the other's employees?
        How long is solicitation of employees forbidden?
        Can we recruit their staff?
        Is poaching employees prohibited?
        Can a party hire the employees of the other?
        How long does the non-solicitation of employees last?
        Is hiring the other side's staff allowed?
        """),
    Topic("nosolicit_customers", "Non-Solicitation of Customers|Customers", """
        For {months} after termination {A} shall not solicit any customer of {B}.
        {A} shall not contact or do business with the clients of {B} for its own account during the term and for {years} thereafter.
        """, """
        May a party solicit the other's customers?
        Is there a restriction on soliciting customers?
        Can clients be approached after termination?
        How long is soliciting clients forbidden?
        """),
    Topic("nondisparagement", "Non-Disparagement", """
        Neither party shall make any disparaging statement about the other or its products.
        {A} shall not disparage {B}, its officers or its services in public or in private.
        """, """
        Is there a non-disparagement clause?
        May a party speak badly of the other?
        Are disparaging statements prohibited?
        """),
    Topic("rofr", "Right of First Refusal|Right of First Offer", """
        If {A} intends to sell its interest to a third party, it shall first offer it to {B} on the same terms, and {B} shall have {days} to accept.
        {B} has a right of first refusal over any further {goods} developed by {A}.
        {A} shall give {B} the first opportunity to negotiate for new rights for a period of {days}.
        Before selling to anyone else, {A} must offer the shares to {B}, who may buy them within {days}.
        """, """
        Is there a right of first refusal?
        Does a party have a right of first offer?
        What must a party do before selling to a third party?
        How long is the right of first refusal open?
        Who has the first right to negotiate?
        Must shares be offered to the other party first?
        """),
    Topic("change_of_control", "Change of Control", """
        {B} may terminate this Agreement if {A} undergoes a change of control, on {days} notice.
        A merger or a sale of substantially all assets of a party requires prior written notice to the other party.
        If control of {A} passes to a competitor of {B}, {B} may end this Agreement with immediate effect.
        A party must give {days} notice before any transaction by which more than half of its shares change hands.
        """, """
        What happens on a change of control?
        What if a party is acquired?
        Does a merger affect the agreement?
        Can the contract be terminated on a change of control?
        Is consent needed for a merger or sale of the company?
        What happens if the company is sold?
        What if there is a merger?
        """),
    Topic("assignment", "Assignment|Transfer|No Assignment", """
        Neither party may assign this Agreement without the prior written consent of the other party.
        {A} shall not transfer its rights or obligations to a third party without the consent of {B}, which shall not be unreasonably withheld.
        {B} may assign this Agreement to an Affiliate upon written notice to {A}.
        This Agreement may not be transferred by either party unless the other agrees in writing.
        {B} may not assign any of its rights hereunder, and any attempted assignment is void.
        Either party may assign this Agreement to the purchaser of its business without consent.
        """, """
        Can the agreement be assigned?
        Is consent required for assignment?
        May a party transfer its rights to a third party?
        Is assignment allowed?
        Can the contract be transferred to an affiliate?
        Who may assign the contract?
        Can a party assign the contract to someone else?
        Is the agreement assignable?
        What happens if a party assigns without consent?
        Can the tenant assign the lease?
        May rights under the contract be assigned?
        """),
    Topic("subcontracting", "Subcontracting|Subcontractors", """
        {A} may not subcontract any part of the {work} without the prior written approval of {B}.
        {A} may engage subcontractors and remains responsible for their performance as for its own.
        The use of subcontractors requires the consent of {B}, and {A} is liable for their acts.
        {A} shall perform the {work} itself and shall not delegate it.
        """, """
        Can the supplier use subcontractors?
        Is subcontracting permitted?
        Who is responsible for subcontractors?
        May the work be delegated?
        May the contractor use subcontractors?
        Is consent needed to subcontract?
        Can the contractor delegate work to others?
        """),
    Topic("audit", "Audit|Records and Audit|Inspection of Books", """
        {B} may audit the books and records of {A} relating to this Agreement once a year upon {days} notice.
        {A} shall keep accurate records for {years} and make them available for inspection during business hours.
        If an audit shows an underpayment of more than {pct}, the audited party bears the cost of the audit.
        Upon reasonable notice {B} or its auditors may examine the accounts of {A} to verify the amounts charged.
        {A} must retain its books for {years} and let {B} inspect them on {days} notice.
        """, """
        Is there a right to audit?
        How often may an audit take place?
        What notice is required for an audit?
        Can the customer inspect the books?
        How long must records be kept?
        Who pays for the audit?
        May records be inspected?
        May the licensor audit the licensee's records?
        Who may inspect the accounts?
        Are there audit rights?
        How long must the books be retained?
        """),
    Topic("covenant_not_to_sue", "No Challenge|Covenant Not to Sue", """
        {B} shall not contest the validity of the Patents or trademarks of {A} or assist others in doing so.
        Each party releases the other from claims unrelated to this Agreement and agrees not to sue on them.
        """, """
        May the licensee challenge the patents?
        Is there a covenant not to sue?
        Can the validity of the intellectual property be contested?
        """),
    Topic("third_party_beneficiary", "Third-Party Beneficiaries|No Third Party Rights", """
        Nothing in this Agreement confers any right on a person who is not a party to it.
        The Affiliates of {B} are third-party beneficiaries of this Agreement and may enforce it directly.
        """, """
        Are there third-party beneficiaries?
        Can a third party enforce the agreement?
        Do third parties have rights under the contract?
        """),
    Topic("force_majeure", "Force Majeure", """
        Neither party is liable for a failure to perform caused by events beyond its reasonable control, such as war, flood or strike.
        If a force majeure event continues for more than {days}, either party may terminate this Agreement.
        A party affected by force majeure shall inform the other within {days} and resume performance as soon as possible.
        No party is responsible for delay or failure caused by acts of God, epidemics, government orders or other circumstances outside its control.
        Where such an event lasts longer than {days}, the other party may end this Agreement by notice.
        """, """
        What happens in case of force majeure?
        What if an event beyond control prevents performance?
        How long may a force majeure event last before termination?
        Is there a force majeure clause?
        Is a party excused by natural disasters?
        When is a party excused from performance?
        What if performance is delayed by events beyond a party's control?
        Can the contract be ended after long force majeure?
        What counts as force majeure?
        """),
    Topic("notices", "Notices", """
        Notices must be in writing and are deemed received {days} after posting by registered mail.
        All notices to {A} shall be sent to its registered office in {city}, for the attention of the {officer}.
        Any notice shall be delivered by hand, by courier or by email and is effective upon receipt.
        Every notice under this Agreement shall be given in writing and sent by recorded delivery to the address of the other party.
        A notice sent by courier is considered received on the {nth} business day after dispatch.
        """, """
        How must notices be given?
        Where must notices be sent?
        When is a notice deemed received?
        Can notices be sent by email?
        In what form are notices given?
        To whom should notices be addressed?
        How are notices delivered?
        How should notice be served?
        Is email sufficient for notices?
        At what address are notices to be served?
        When does a notice take effect?
        """),
    Topic("amendment", "Amendments|Amendment|Modification", """
        This Agreement may be amended only by a written instrument signed by both parties.
        No modification of this Agreement is valid unless made in writing and executed by authorised representatives.
        Changes to this Agreement require the written consent of both parties.
        No variation shall be effective unless it is agreed in a signed document.
        """, """
        How can the agreement be amended?
        Must changes be in writing?
        Can the contract be changed orally?
        What is needed to modify the agreement?
        How can the contract be changed?
        Can the agreement be modified by email?
        What form must amendments take?
        """),
    Topic("entire_agreement", "Entire Agreement", """
        This Agreement constitutes the entire agreement between the parties and supersedes all prior negotiations and understandings.
        This document contains everything the parties have agreed and replaces all earlier arrangements on its subject.
        There are no other agreements, oral or written, between the parties about the subject of this Agreement.
        """, """
        Is this the entire agreement?
        Are earlier agreements superseded?
        Do prior understandings still apply?
        Are there any side agreements?
        Does the contract replace earlier agreements?
        """),
    Topic("precedence", "Order of Precedence", """
        In case of conflict between this Agreement and an order form, this Agreement prevails.
        If the schedules contradict the main body, the order form takes precedence over the general terms.
        """, """
        Which document prevails in case of conflict?
        What is the order of precedence?
        What if the order form contradicts the agreement?
        """),
    Topic("waiver", "Waiver", """
        A failure to exercise a right under this Agreement does not operate as a waiver of it.
        No waiver is effective unless given in writing by the party against which it is asserted.
        """, """
        Does failure to enforce a right waive it?
        How can rights be waived?
        Must a waiver be in writing?
        """),
    Topic("severability", "Severability", """
        If any provision of this Agreement is held invalid, the remaining provisions continue in full force.
        An unenforceable term shall be replaced by a valid one that comes closest to its economic purpose.
        """, """
        What if a provision is invalid?
        Does an unenforceable clause affect the rest?
        Is there a severability clause?
        """),
    Topic("counterparts", "Counterparts|Electronic Signature", """
        This Agreement may be signed in counterparts and by electronic signature, each of which is an original.
        """, """
        Can the agreement be signed electronically?
        May it be executed in counterparts?
        Are electronic signatures valid?
        """),
    Topic("independent_contractor", "Relationship of the Parties|Independent Contractor", """
        {A} is an independent contractor and nothing in this Agreement creates an employment relationship or a partnership.
        Neither party is the agent of the other or may bind it in any way.
        The parties are independent businesses, and neither is the employee, partner or agent of the other.
        """, """
        What is the relationship between the parties?
        Is the consultant an employee?
        Is there a partnership between the parties?
        Can one party bind the other?
        Is the contractor an employee of the company?
        Is this a partnership?
        """),
    Topic("publicity", "Publicity|Press Releases|Use of Name", """
        Neither party shall use the name or logo of the other in publicity without prior written consent.
        {A} may name {B} as a reference customer on its website.
        No press release about this Agreement may be issued unless both parties approve it.
        Announcements about this Agreement need the prior approval of the other party.
        """, """
        May a party use the other's name or logo?
        Can we issue a press release?
        Is publicity allowed?
        May the vendor mention the customer as a reference?
        Can a party announce the deal?
        May the logo be used in marketing?
        """),
    Topic("compliance", "Compliance with Laws|Anti-Corruption", """
        Each party shall comply with all applicable laws, including those against bribery and corruption.
        {A} shall not offer or pay anything of value to a public official in connection with this Agreement.
        """, """
        Must the parties comply with anti-bribery laws?
        What are the compliance obligations?
        Is bribery addressed?
        Which laws must be followed?
        """),
    Topic("export", "Export Control", """
        {B} shall not export or re-export the {product} in violation of applicable export control laws.
        """, """
        Are there export restrictions?
        May the product be exported?
        What about export control?
        """),
    Topic("data_protection", "Data Protection|Privacy|Personal Data", """
        {A} shall process personal data only on the documented instructions of {B} and in accordance with data protection law.
        {A} shall apply appropriate technical and organisational measures to protect personal data.
        Personal data shall not be transferred outside {territory} without the consent of {B}.
        Where {A} processes personal data for {B}, it acts as processor and follows the instructions of {B}.
        {A} shall encrypt personal data and limit access to authorised staff.
        """, """
        How must personal data be processed?
        What are the data protection obligations?
        Who controls the processing of personal data?
        Can personal data be transferred abroad?
        How is privacy protected?
        What are the rules on personal data?
        How is customer data protected?
        What security measures are required?
        Is the provider a processor?
        """),
    Topic("breach_notice", "Security Incidents|Data Breach Notification", """
        {A} shall notify {B} of any personal data breach without undue delay and no later than {hours} after becoming aware of it.
        In the event of a security incident {A} must inform {B} within {hours}.
        {A} must tell {B} about any unauthorised access to its data within {hours} of discovering it.
        """, """
        How soon must a data breach be reported?
        When must a security incident be notified?
        What happens after a data breach?
        Within how many hours must the customer be told of a breach of security?
        How quickly must the provider report a data breach?
        When does the customer have to be informed of a security breach?
        """),
    Topic("data_deletion", "Return of Data|Data Retention|Deletion of Data", """
        {A} shall delete all Customer Data within {days} after termination, after giving {B} the opportunity to export it.
        Customer Data is retained for {days} after the end of the subscription and is then permanently erased.
        {B} may download its data for {days} after this Agreement ends, after which {A} destroys it.
        """, """
        When is customer data deleted?
        What happens to the data after termination?
        How long is customer data kept?
        Can the customer export its data?
        How long can data be retrieved after termination?
        When will the provider erase the data?
        """, "saas services"),
    Topic("data_ownership", "Customer Data|Ownership of Data", """
        {B} retains all rights in the data that it uploads to the {product}.
        All Customer Data remains the property of {B}, and {A} may use it only to provide the service.
        """, """
        Who owns the customer data?
        Does the provider have rights in the data?
        To whom does uploaded data belong?
        How may the provider use customer data?
        """, "saas services"),
    Topic("uptime", "Service Levels|Availability", """
        {A} shall make the {product} available {uptime} of the time in each calendar month, excluding scheduled maintenance.
        The guaranteed monthly availability of the service is {uptime}.
        The provider commits to a monthly uptime of {uptime}, measured by its monitoring tools.
        """, """
        What uptime is guaranteed?
        What is the availability commitment?
        What is the service level?
        How reliable must the service be?
        What percentage availability is promised?
        What is the uptime commitment?
        How much availability does the provider guarantee?
        """, "saas"),
    Topic("service_credits", "Service Credits", """
        If availability falls below the service level, {B} receives a credit of {pct} of the monthly fee.
        Service credits may not exceed {pct_big} of the fees for the month concerned.
        For every full hour of downtime {B} is credited {pct} of the monthly charge.
        """, """
        What service credits are available?
        What does the customer get if the uptime is missed?
        Is there compensation for downtime?
        What is the maximum service credit?
        What credit is given for downtime?
        What remedy is there if the service level is not met?
        """, "saas"),
    Topic("support", "Support|Maintenance and Support|Help Desk", """
        {A} shall respond to critical support requests within {hours} of notification.
        Support is available by telephone and email on business days from 9 a.m. to 6 p.m.
        {A} provides updates and error corrections at no additional charge during the term.
        {A} operates a help desk that answers urgent calls within {hours}.
        """, """
        What are the support hours?
        How fast must support respond?
        What support is provided?
        What is the response time for critical issues?
        Are updates included?
        What is the response time?
        How quickly does the provider respond to incidents?
        When is the help desk available?
        """, "saas license services"),
    Topic("suspension", "Suspension of Service|Suspension", """
        {A} may suspend access to the {product} if an invoice remains unpaid for more than {days} after a reminder.
        {A} is entitled to suspend the service where necessary to protect the security of its systems.
        """, """
        When can the service be suspended?
        Can the provider suspend access for non-payment?
        Under what conditions is access blocked?
        """, "saas services"),
    Topic("delivery", "Delivery|Shipment|Delivery Dates", """
        {A} shall deliver the {goods} to {B}'s warehouse in {city} within {days} after the order.
        Delivery takes place {incoterm} {city} in accordance with the agreed schedule.
        {A} shall complete the {work} no later than {date}.
        The {goods} shall be shipped within {days} of acceptance of the order.
        {A} must supply the {goods} to the premises of {B} in {city} by {date}.
        """, """
        When must the goods be delivered?
        Where is delivery made?
        What is the delivery time?
        What are the delivery terms?
        By when must the work be completed?
        What is the deadline for delivery?
        How soon must the goods be shipped?
        When does the supplier have to deliver?
        What is the shipping term?
        How long does delivery take?
        """, "supply distribution services"),
    Topic("risk", "Title and Risk|Risk of Loss", """
        Title to and risk of loss of the {goods} pass to {B} upon delivery.
        {A} retains title to the {goods} until the purchase price has been paid in full.
        The risk of damage passes to {B} when the {goods} are handed to the carrier.
        Ownership of the {goods} is transferred on payment, while risk is transferred on delivery.
        """, """
        When does risk pass to the buyer?
        When does title pass?
        Who bears the risk of loss?
        Who owns the goods until they are paid for?
        At what point does ownership transfer?
        Who carries the risk during transport?
        """, "supply distribution"),
    Topic("acceptance", "Inspection and Acceptance|Acceptance", """
        {B} shall inspect the {goods} within {days} of delivery and notify {A} of any visible defects.
        The deliverables are deemed accepted unless {B} rejects them in writing within {days}.
        Within {days} of receipt {B} may reject {goods} that do not conform to the order.
        {B} has {days} to test the deliverables, and silence counts as acceptance.
        """, """
        How long does the customer have to inspect the goods?
        What is the acceptance procedure?
        When are deliverables deemed accepted?
        When must defects be reported?
        How can deliverables be rejected?
        How many days to reject non-conforming goods?
        What is the acceptance period?
        How long is the inspection period?
        """, "supply services distribution"),
    Topic("orders", "Orders|Purchase Orders|Forecasts", """
        {B} shall submit purchase orders at least {days} before the requested delivery date.
        Each month {B} shall provide a rolling forecast of its requirements for the next {months}.
        {A} shall accept or reject an order within {days} of receiving it.
        """, """
        How far in advance must orders be placed?
        Is a forecast required?
        How are orders accepted?
        What is the lead time for orders?
        """, "supply distribution"),
    Topic("recall", "Product Recall|Recall", """
        In the event of a recall {A} shall bear all costs of retrieving and replacing the affected {goods}.
        """, """
        Who pays for a product recall?
        What happens in a recall?
        """, "supply distribution"),
    Topic("change_order", "Change Orders|Changes to the Services", """
        No change to the scope of the {work} is binding unless set out in a change order signed by both parties.
        {A} shall respond to a change request within {days} with an estimate of its effect on price and time.
        """, """
        How can the scope of work be changed?
        What is the procedure for change requests?
        Are change orders required?
        """, "services"),
    Topic("key_personnel", "Key Personnel|Personnel", """
        {A} shall not replace the key personnel named in the schedule without the consent of {B}.
        The services shall be performed under the direction of {person}.
        """, """
        Who are the key personnel?
        Can key personnel be replaced?
        Who performs the services?
        """, "services employment"),
    Topic("scope", "Services|Scope of Work|Scope of Services", """
        {A} shall provide {B} with the {work} described in Schedule A.
        {A} agrees to perform the {work} with the skill and care of an experienced professional.
        {A} is engaged to carry out {work} for {B} on the terms of this Agreement.
        """, """
        What services are provided?
        What is the scope of work?
        What must the supplier do?
        What standard of care applies to the services?
        What is the contractor engaged to do?
        What work does the consultant perform?
        """, "services employment saas"),
    Topic("rent", "Rent|Base Rent", """
        {B} shall pay rent of {amount} per month, in advance on the {nth} day of each month.
        The annual base rent is {amount}, payable in equal monthly instalments.
        The monthly rent for the premises is {amount}, due on the {nth} day of the month.
        """, """
        How much is the rent?
        What is the monthly rent?
        When is rent due?
        What does the tenant pay?
        What rent does the tenant pay?
        How much is the annual rent?
        """, "lease"),
    Topic("deposit", "Security Deposit", """
        On signing {B} shall pay a security deposit of {amount}, to be returned within {days} after the end of the lease.
        {A} holds a deposit of {amount} as security for the obligations of {B}.
        {B} deposits {amount} with {A} as security for the performance of this lease.
        """, """
        How much is the security deposit?
        When is the deposit returned?
        Is a deposit required?
        What deposit must the tenant pay?
        What is the amount of the deposit?
        """, "lease"),
    Topic("premises_use", "Use of Premises|Permitted Use", """
        The premises may be used only for {use} and for no other purpose.
        {B} shall use the premises solely as {use}.
        """, """
        What may the premises be used for?
        What is the permitted use?
        Can the tenant use the premises for other purposes?
        """, "lease"),
    Topic("repairs", "Repairs and Maintenance|Maintenance", """
        {A} shall maintain the roof, structure and exterior, and {B} shall keep the interior in good repair.
        {B} is responsible for all repairs costing less than {amount}.
        {A} carries out repairs to the building, except damage caused by {B}.
        """, """
        Who is responsible for repairs?
        Who maintains the building?
        Must the tenant repair the premises?
        Who has to maintain the premises?
        What must the landlord repair?
        """, "lease"),
    Topic("sublet", "Subletting|Assignment and Subletting", """
        {B} shall not sublet the premises or any part of them without the written consent of {A}.
        Subletting is permitted to Affiliates of {B} upon {days} notice.
        """, """
        Can the tenant sublet?
        Is subletting allowed?
        May the premises be sublet to a third party?
        """, "lease"),
    Topic("holdover", "Holding Over", """
        If {B} remains in possession after the end of the term, it shall pay {pct_big} of the last monthly rent for each month of holding over.
        """, """
        What happens if the tenant stays after the term?
        What is the holdover rent?
        """, "lease"),
    Topic("alterations", "Alterations", """
        {B} shall make no structural alterations to the premises without the prior consent of {A}.
        """, """
        May the tenant make alterations?
        Is consent needed for alterations?
        """, "lease"),
    Topic("entry", "Access by Landlord|Right of Entry", """
        {A} may enter the premises to inspect them on at least {hours} notice.
        """, """
        When may the landlord enter the premises?
        How much notice is needed to enter the premises?
        """, "lease"),
    Topic("loan_amount", "The Loan|Commitment", """
        {A} agrees to lend {B} the principal sum of {amount}.
        The lender makes available to {B} a term loan in the amount of {amount}.
        """, """
        What is the loan amount?
        How much is lent?
        What is the principal of the loan?
        """, "loan"),
    Topic("loan_interest", "Interest|Interest Rate", """
        The loan bears interest at a fixed rate of {pct} per annum.
        Interest accrues on the outstanding principal at {pct} per year and is payable quarterly.
        {B} shall pay interest on the loan at an annual rate of {pct}.
        """, """
        What is the interest rate of the loan?
        What interest does the borrower pay?
        At what rate does interest accrue?
        What is the rate of interest?
        How much interest is payable on the loan?
        """, "loan"),
    Topic("maturity", "Repayment|Maturity", """
        {B} shall repay the loan in full on {date}.
        The principal shall be repaid in {count_small} equal monthly instalments beginning on {date}.
        The outstanding balance is due and payable on {date}.
        """, """
        When must the loan be repaid?
        What is the maturity date?
        How is the loan repaid?
        In how many instalments is the loan repaid?
        When is the loan due?
        When does the loan mature?
        What is the repayment schedule?
        """, "loan"),
    Topic("prepayment", "Prepayment", """
        {B} may prepay the loan in whole or in part at any time without premium or penalty.
        Any prepayment requires {days} notice and a fee of {pct} of the amount prepaid.
        """, """
        Can the loan be prepaid?
        Is there a prepayment penalty?
        May the borrower repay early?
        """, "loan"),
    Topic("default_events", "Events of Default", """
        It is an event of default if {B} fails to pay any amount within {days} of its due date.
        Upon an event of default the lender may declare the entire loan immediately due and payable.
        An event of default occurs when {B} breaches a covenant and does not cure it within {days}.
        """, """
        What are the events of default?
        When is the borrower in default?
        What can the lender do on default?
        When does the loan become immediately due?
        What counts as an event of default?
        What happens if the borrower defaults?
        """, "loan"),
    Topic("collateral", "Security|Collateral", """
        As security for the loan {B} grants {A} a first-priority security interest in {collateral}.
        The loan is secured by {collateral}.
        """, """
        What secures the loan?
        Is there collateral?
        What security does the borrower give?
        """, "loan"),
    Topic("salary", "Salary|Remuneration|Compensation", """
        The Employee receives an annual base salary of {amount}, payable in monthly instalments.
        {B} shall pay {A} a gross salary of {amount} per year.
        For the services {A} is paid {amount} per annum.
        """, """
        What is the salary?
        How much does the employee earn?
        What is the annual compensation?
        What is the employee paid?
        What is the base salary?
        """, "employment"),
    Topic("bonus", "Bonus", """
        {A} is eligible for an annual bonus of up to {pct_big} of base salary, subject to the targets set by the board.
        """, """
        Is there a bonus?
        How large is the annual bonus?
        """, "employment"),
    Topic("vacation", "Vacation|Annual Leave", """
        {A} is entitled to {count_small} working days of paid vacation in each calendar year.
        """, """
        How many vacation days are there?
        How much paid leave does the employee get?
        What is the holiday entitlement?
        """, "employment"),
    Topic("probation", "Probation", """
        The first {months} of employment are a probationary period during which either party may give {days} notice.
        """, """
        How long is the probation period?
        What is the notice period during probation?
        """, "employment"),
    Topic("hours", "Working Hours|Place of Work", """
        The regular working time is {count_small} hours per week at the office in {city}.
        """, """
        What are the working hours?
        Where is the place of work?
        """, "employment"),
    Topic("severance", "Severance", """
        If {B} terminates the employment without cause, {A} receives severance equal to {months} of base salary.
        """, """
        Is severance paid?
        How much severance does the employee receive?
        """, "employment"),
    Topic("capital", "Capital Contributions|Contributions", """
        {A} shall contribute {amount} and {B} shall contribute {amount} to the capital of the venture.
        Each member shall make its initial capital contribution by {date}.
        The initial capital of the venture is {amount}, provided by the parties in equal parts.
        """, """
        How much capital must each party contribute?
        What are the capital contributions?
        When are contributions due?
        What does each party contribute?
        """, "jv"),
    Topic("board", "Management|Board", """
        The board consists of {count_small} directors, of whom {A} appoints the chair.
        Decisions of the management committee require a majority of {pct_big} of the votes.
        Each party appoints {count_small} members of the steering committee, which decides by simple majority.
        """, """
        How is the board composed?
        Who appoints the directors?
        What majority is needed for decisions?
        How is the venture managed?
        How many directors are there?
        Who manages the joint venture?
        """, "jv"),
    Topic("deadlock", "Deadlock", """
        If the board cannot agree within {days}, the matter is referred to the chief executives of both parties.
        """, """
        How is a deadlock resolved?
        What happens if the board cannot agree?
        """, "jv"),
    Topic("marketing", "Marketing|Promotion", """
        {B} shall spend at least {amount} each year on the promotion of the {goods}.
        {B} shall use its best efforts to market the {goods} and attend trade fairs at its own cost.
        {B} promotes the {goods} at its own expense and keeps a trained sales force.
        """, """
        What are the marketing obligations?
        How much must be spent on promotion?
        Who pays for marketing?
        How must the distributor promote the products?
        """, "distribution license jv"),
    Topic("agreement_date", "Date", """
        This {kind_title} (this "Agreement") is made on {date} between {NA} ("{A}") and {NB} ("{B}").
        This {kind_title} is entered into as of {date} by and between {NA}, a {state_word} corporation ("{A}"), and {NB} ("{B}").
        THIS {KIND_TITLE} (the "Agreement") is dated {date} and made between {NA} (hereinafter "{A}") and {NB} (hereinafter "{B}").
        """, """
        Who are the parties to the agreement?
        When was the agreement signed?
        What is the date of the agreement?
        Who are the contracting parties?
        Between whom is the contract made?
        On what date was the contract made?
        """, "never"),
)  # fmt: skip

QUESTIONS: dict[str, tuple[str, ...]] = {topic.key: lines(topic.questions) for topic in TOPICS}
TOPIC_OF_CATEGORY = {
    "Agreement Date": "agreement_date", "Effective Date": "effective_date", "Expiration Date": "term",
    "Renewal Term": "renewal", "Notice Period To Terminate Renewal": "renewal_notice", "Governing Law": "governing_law",
    "Most Favored Nation": "mfn", "Non-Compete": "non_compete", "Exclusivity": "exclusivity",
    "No-Solicit Of Customers": "nosolicit_customers", "No-Solicit Of Employees": "nosolicit_employees",
    "Non-Disparagement": "nondisparagement", "Termination For Convenience": "termination_convenience",
    "Rofr/Rofo/Rofn": "rofr", "Change Of Control": "change_of_control", "Anti-Assignment": "assignment",
    "Revenue/Profit Sharing": "revenue_share", "Price Restrictions": "price_restriction",
    "Minimum Commitment": "min_commitment", "Volume Restriction": "volume_restriction",
    "Ip Ownership Assignment": "ip_assignment", "Joint Ip Ownership": "joint_ip", "License Grant": "license_grant",
    "Non-Transferable License": "nontransferable_license", "Affiliate License-Licensee": "affiliate_license",
    "Unlimited/All-You-Can-Eat-License": "unlimited_license", "Irrevocable Or Perpetual License": "perpetual_license",
    "Source Code Escrow": "escrow", "Post-Termination Services": "effect_of_termination", "Audit Rights": "audit",
    "Uncapped Liability": "uncapped_liability", "Cap On Liability": "cap_on_liability",
    "Liquidated Damages": "liquidated_damages", "Warranty Duration": "warranty", "Insurance": "insurance",
    "Covenant Not To Sue": "covenant_not_to_sue", "Third Party Beneficiary": "third_party_beneficiary",
}  # fmt: skip

KINDS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "services": ("Services Agreement|Master Services Agreement|Consulting Agreement|Professional Services Agreement", (("Supplier", "Customer"), ("Provider", "Client"), ("Contractor", "Company"), ("Consultant", "Client"))),
    "license": ("Software License Agreement|License Agreement|Patent License Agreement", (("Licensor", "Licensee"),)),
    "nda": ("Non-Disclosure Agreement|Mutual Confidentiality Agreement", (("Discloser", "Recipient"), ("Disclosing Party", "Receiving Party"))),
    "lease": ("Lease Agreement|Office Lease|Commercial Lease", (("Landlord", "Tenant"), ("Lessor", "Lessee"))),
    "supply": ("Supply Agreement|Manufacturing and Supply Agreement|Purchase Agreement", (("Seller", "Buyer"), ("Supplier", "Purchaser"), ("Manufacturer", "Customer"))),
    "employment": ("Employment Agreement|Independent Consultant Agreement", (("Employee", "Employer"), ("Executive", "Company"), ("Consultant", "Company"))),
    "distribution": ("Distribution Agreement|Reseller Agreement", (("Supplier", "Distributor"), ("Manufacturer", "Reseller"), ("Vendor", "Distributor"))),
    "saas": ("Subscription Agreement|Cloud Services Agreement|Software as a Service Agreement", (("Provider", "Customer"), ("Vendor", "Subscriber"))),
    "loan": ("Loan Agreement|Credit Agreement", (("Lender", "Borrower"),)),
    "jv": ("Joint Venture Agreement|Collaboration Agreement", (("First Party", "Second Party"), ("Party A", "Party B"))),
}  # fmt: skip

FILLERS = lines("""
    The parties shall cooperate in good faith to give effect to this Section.
    Further details are set out in the schedules, which form part of this Agreement.
    Headings are for convenience only and do not affect interpretation.
    Each party shall bear its own costs in connection with this Section.
    The rights under this Section are in addition to any other remedies available at law.
    {A} shall keep {B} reasonably informed of all matters that concern it.
    {B} shall provide {A} with the information that it reasonably needs.
    For the avoidance of doubt, this Section applies to Affiliates as well.
    This obligation is a material term of this Agreement.
    {A} acknowledges that it has read and understood this provision.
    The parties shall review this provision once a year.
    Any deviation requires the written approval of the {officer} of {B}.
    Nothing in this Section relieves {B} of its other obligations.
    {A} shall ensure that its staff are aware of and comply with this Section.
    Time is of the essence in respect of this obligation.
""")

_MONTHS = "January February March April May June July August September October November December".split()
_STATES = "the State of New York|the State of Delaware|the State of California|the State of Texas|England and Wales|the State of Illinois|Germany|the Commonwealth of Massachusetts|Switzerland|the Province of Ontario|the State of Florida|Singapore|the State of Washington|Scotland|Ireland|France|the Netherlands|the State of Nevada|Hong Kong|the State of Ohio|New South Wales|Sweden|the Commonwealth of Pennsylvania|the State of Georgia|Japan".split(
    "|"
)
_CITIES = "New York|London|San Francisco|Chicago|Boston|Geneva|Frankfurt|Dublin|Toronto|Singapore|Houston|Seattle|Paris|Amsterdam|Denver|Munich|Zurich|Stockholm|Atlanta|Hamburg|Austin|Vienna|Milan|Portland|Edinburgh|Rotterdam|Philadelphia|Los Angeles|Leeds|Lyon".split(
    "|"
)
_NAMES = "Alder Birch Cobalt Dorset Ember Fairfield Granite Harbor Ivory Juniper Keystone Larkspur Meridian Northgate Orchard Pinnacle Quarry Redwood Silverline Tamarack Umber Vantage Westbrook Yarrow Zephyr Bluewater Castlegate Driftwood Eastvale Foxhill Glenmore Highmark Ironbridge Lakeshore Moorland Oakhurst Riverbend Stonefield Thornbury Windmere Apex Beacon Crescent Delta Evergreen Falcon Gemini Horizon Kestrel Lumen Nimbus Orion Polaris Quantum Sterling Titan Vertex Aurora Brightwell Copperfield".split()
_TRADES = "Systems Logistics Holdings Pharma Foods Energy Software Media Textiles Analytics Robotics Materials Partners Properties Instruments Networks Biotech Capital Motors Packaging Health Shipping Design Minerals Laboratories".split()
_FORMS = "Inc.|LLC|Ltd.|Corp.|GmbH|PLC|Limited|L.P.|AG|B.V.".split("|")
_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()
_TENS = {
    30: "thirty",
    40: "forty",
    45: "forty-five",
    60: "sixty",
    75: "seventy-five",
    90: "ninety",
    120: "one hundred twenty",
    180: "one hundred eighty",
    24: "twenty-four",
    36: "thirty-six",
    48: "forty-eight",
    72: "seventy-two",
}


def _spelled(rng: random.Random, number: int, unit: str) -> str:
    word = _NUMBERS[number] if number <= 20 else _TENS.get(number, str(number))
    unit = unit if number == 1 else unit + "s"
    return rng.choice((f"{word} ({number}) {unit}", f"{number} {unit}", f"{word} {unit}", f"{word} ({number}) {unit}"))


def _date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.choice(_MONTHS), rng.randint(1996, 2034)
    return rng.choice((f"{month} {day}, {year}", f"{day} {month} {year}", f"{month} {day}, {year}"))


def _amount(rng: random.Random) -> str:
    number = rng.choice(
        (rng.randint(1, 99) * 1000, rng.randint(1, 99) * 100, rng.randint(1, 40) * 50_000, rng.randint(10, 990))
    )
    return rng.choice(
        (
            f"${number:,}",
            f"USD {number:,}",
            f"EUR {number:,}",
            f"£{number:,}",
            f"US${number:,}.00",
            f"${number:,}",
            "[***]" if rng.random() < 0.2 else f"CHF {number:,}",
        )
    )


def _percent(rng: random.Random, low: int, high: int) -> str:
    number = rng.randint(low, high)
    exact = rng.choice((f"{number}%", f"{number} percent", f"{number}.{rng.randint(1, 9)}%", f"{number} per cent"))
    return f"{_NUMBERS[number]} percent ({number}%)" if number <= 20 and rng.random() < 0.25 else exact


def _company(rng: random.Random) -> str:
    return f"{rng.choice(_NAMES)} {rng.choice(_TRADES)} {rng.choice(_FORMS)}"


SLOTS: dict[str, Callable[[random.Random], str]] = {
    "days": lambda r: _spelled(r, r.choice((5, 7, 10, 14, 15, 20, 30, 45, 60, 75, 90, 120, 180)), r.choice(("day", "day", "day", "business day", "calendar day"))),
    "months": lambda r: _spelled(r, r.choice((2, 3, 4, 6, 9, 12, 18, 24, 36)), "month"),
    "years": lambda r: _spelled(r, r.choice((1, 2, 3, 4, 5, 6, 7, 10, 15, 20)), "year"),
    "hours": lambda r: _spelled(r, r.choice((1, 2, 4, 8, 12, 24, 36, 48, 72)), "hour"),
    "amount": _amount,
    "pct": lambda r: _percent(r, 1, 15),
    "pct_big": lambda r: _percent(r, 15, 95) if r.random() < 0.7 else r.choice(("100%", "125%", "150%", "200%")),
    "uptime": lambda r: r.choice(("99%", "99.5%", "99.9%", "99.95%", "98.5%", "99.8%")),
    "state": lambda r: r.choice(_STATES),
    "state_word": lambda r: r.choice(("Delaware", "New York", "Texas", "Nevada", "California", "Swiss", "German")),
    "city": lambda r: r.choice(_CITIES),
    "date": _date,
    "date2": _date,
    "count": lambda r: f"{r.choice((50, 100, 120, 200, 250, 500, 750, 1000, 1500, 2000, 5000, 10000)):,}",
    "count_small": lambda r: str(r.randint(3, 40)),
    "one_three": lambda r: r.choice(("one", "three")),
    "nth": lambda r: r.choice(("first", "fifth", "tenth", "fifteenth", "last")),
    "arbiter": lambda r: r.choice(("American Arbitration Association", "International Chamber of Commerce", "London Court of International Arbitration", "Singapore International Arbitration Centre", "JAMS")),
    "work": lambda r: r.choice(("consulting services", "maintenance work", "design services", "translation services", "training", "engineering services", "cleaning services", "research", "accounting services", "hosting services", "marketing services", "software development")),
    "goods": lambda r: r.choice(("Products", "Goods", "Equipment", "Devices", "Components", "Machines", "Materials", "Licensed Products", "Batteries", "Instruments")),
    "product": lambda r: r.choice(("Software", "Platform", "Licensed Software", "Application", "Service", "System", "Documentation")),
    "territory": lambda r: r.choice(("the United States and Canada", "the European Union", "Japan and South Korea", "Brazil", "the European Economic Area", "the State of California", "Germany, Austria and Switzerland", "the United Kingdom", "Mexico", "North America", "Australia and New Zealand")),
    "officer": lambda r: r.choice(("General Counsel", "Chief Financial Officer", "Managing Director", "Legal Department", "Company Secretary", "Head of Procurement")),
    "person": lambda r: r.choice(("Dr. Ellen Marsh", "Mr. Tomas Reyes", "Ms. Priya Nair", "Mr. Jonas Lindqvist", "Ms. Carla Rossi", "Dr. Samuel Osei")),
    "use": lambda r: r.choice(("a general office", "a retail store", "a restaurant", "a warehouse", "a dental practice", "light manufacturing", "a fitness studio")),
    "collateral": lambda r: r.choice(("all of its accounts receivable", "its inventory and equipment", "a mortgage on the property", "a pledge of its shares", "all present and future assets")),
    "incoterm": lambda r: r.choice(("FOB", "EXW", "DDP", "CIF", "FCA", "DAP")),
}  # fmt: skip


@dataclass
class Setting:
    """The names that stay the same throughout one contract."""

    fixed: dict[str, str]

    def fill(self, rng: random.Random, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            return self.fixed.get(match[1]) or SLOTS[match[1]](rng)

        return re.sub(r"\{(\w+)\}", value, text)


def _setting(rng: random.Random) -> tuple[str, Setting]:
    kind = rng.choice(list(KINDS))
    titles, roles = KINDS[kind]
    first, second = rng.choice(roles)
    name, other = _company(rng), _company(rng)
    if rng.random() < 0.2:  # parties called by name instead of role
        first, second = name.split()[0], other.split()[0]
    title = rng.choice(titles.split("|"))
    fixed = {"A": first, "B": second, "NA": name, "NB": other, "kind_title": title, "KIND_TITLE": title.upper()}
    for slot in ("work", "goods", "product"):
        fixed[slot] = SLOTS[slot](rng)
    if "Party" not in first and rng.random() < 0.7:
        fixed["A"], fixed["B"] = (
            f"the {role}" if first[0].isupper() and role in str(KINDS) else role for role in (first, second)
        )
    return kind, Setting(fixed)


def _sentence(rng: random.Random, setting: Setting, wording: str) -> str:
    text = setting.fill(rng, wording)
    text = text.replace('"the ', '"')
    return text[0].upper() + text[1:]


def generate(rng: random.Random) -> Document:
    """One contract of 12 to 30 clauses; its facts are the sentences that state them."""
    kind, setting = _setting(rng)
    common = [topic for topic in TOPICS if not topic.kinds]
    special = [topic for topic in TOPICS if kind in topic.kinds.split()]
    chosen = rng.sample(common, rng.randint(10, 24)) + rng.sample(
        special, rng.randint(min(2, len(special)), len(special))
    )
    rng.shuffle(chosen)
    parts, facts = [], []
    opening = next(topic for topic in TOPICS if topic.key == "agreement_date")
    title = setting.fixed["kind_title"]
    position = 0

    def write(text: str) -> int:
        nonlocal position
        parts.append(text)
        position += len(text)
        return position - len(text)

    write(title.upper() + "\n\n" if rng.random() < 0.7 else title + "\n\n")
    text = _sentence(rng, setting, rng.choice(lines(opening.clauses)))
    start = write(text)
    facts.append(Fact("agreement_date", start, start + len(text)))
    write("\n\n")
    style, grouped, section, clause = rng.randrange(4), rng.random() < 0.35, 0, 0
    for topic in chosen:
        heading = rng.choice(topic.heading.split("|"))
        if not grouped or clause in (0, 3):
            section, clause = section + 1, 0
            write(_heading(style, section, heading) + "\n\n")
        clause += 1
        if grouped:
            write(f"{section}.{clause} {heading}. " if rng.random() < 0.7 else f"{section}.{clause} ")
        elif style == 2:
            write(f"{section}.1 ")
        if rng.random() < 0.25:
            write(_sentence(rng, setting, rng.choice(FILLERS)) + " ")
        wordings = rng.sample(lines(topic.clauses), 1)
        text = _sentence(rng, setting, wordings[0])
        start = write(text)
        facts.append(Fact(topic.key, start, start + len(text)))
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            write(" " + _sentence(rng, setting, rng.choice(FILLERS)))
        write("\n\n")
    company = rng.choice((setting.fixed["NA"], setting.fixed["NB"], f"{setting.fixed['NA']} and {setting.fixed['NB']}"))
    name = rng.choice((title, f"{title} - {company}", f"{company} {title}"))
    absent = frozenset(topic.key for topic in TOPICS if topic.key not in ("agreement_date", "scope"))
    return Document(name, "".join(parts).strip(), tuple(facts), absent)


def _heading(style: int, number: int, heading: str) -> str:
    if style == 0:
        return f"{number}. {heading.upper()}"
    if style == 1:
        return f"ARTICLE {number} {heading.upper()}"
    return f"{number}. {heading}"
