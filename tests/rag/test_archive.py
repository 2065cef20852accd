"""ZIP archives and e-mails: what is inside is filed, what is dangerous is not."""

import io
import struct
import zipfile
from email.message import EmailMessage

import pytest

from app.errors import UnreadableDocument, UnsupportedMediaType
from app.rag.parsing import archive, parse
from app.rag.parsing.archive import File, unpack
from tests.conftest import Site
from tests.rag.conftest import make_pdf

LIMIT = 1 << 20


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return buffer.getvalue()


def message(subject: str = "The lease", body: str = "Dear all, the rent is due.", **attached: bytes) -> bytes:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Date"] = "Ann <ann@firm.test>", "bob@firm.test", "Mon, 1 Jul 2024 10:00:00 +0000"
    mail["Subject"] = subject
    mail.set_content(body)
    mail.add_alternative(f"<p>{body} <script>steal()</script></p>", subtype="html")
    for name, data in attached.items():
        mail.add_attachment(data, maintype="application", subtype="octet-stream", filename=name.replace("_", "."))
    return mail.as_bytes()


def opened(data: bytes, name: str = "bundle.zip") -> archive.Unpacked:
    return unpack(File(name, "", data), LIMIT)


def test_members_become_files_with_their_path_as_name() -> None:
    found = opened(zipped({"a.txt": b"one", "deep/b.md": b"# two", "__MACOSX/._a.txt": b"junk", "empty/": b""}))
    assert [(file.filename, file.data) for file in found.files] == [("a.txt", b"one"), ("deep/b.md", b"# two")]
    assert found.refused == []


def test_an_archive_in_an_archive_is_opened_once_and_no_deeper() -> None:
    third = zipped({"c.txt": b"three"})
    second = zipped({"b.txt": b"two", "third.zip": third})
    found = opened(zipped({"a.txt": b"one", "second.zip": second}))
    assert [file.filename for file in found.files] == ["a.txt", "second.zip/b.txt"]
    [(name, reason)] = found.refused
    assert name == "second.zip/third.zip"
    assert "deep" in reason


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/passwd", "a/../../b.txt", "C:\\evil.txt", "..\\evil.txt"])
def test_paths_that_lead_out_condemn_the_archive(name: str) -> None:
    with pytest.raises(UnreadableDocument, match="leads out") as caught:
        opened(zipped({"good.txt": b"x", name: b"y"}))
    assert caught.value.extra["reason"] == "path"


def test_a_bomb_is_not_unpacked() -> None:
    with pytest.raises(UnreadableDocument, match="more than an archive may"):
        opened(zipped({"bomb.txt": bytes(50 * 2**20)}))
    nested = zipped({"inner.zip": zipped({"bomb.txt": bytes(50 * 2**20)})})
    with pytest.raises(UnreadableDocument, match="more than an archive may"):
        opened(nested)


def test_a_header_that_lies_about_its_size_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1000)
    data = bytearray(zipped({"a.txt": b"x" * 5000}, zipfile.ZIP_STORED))
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", 500)  # declares 500 bytes
    try:
        found = opened(bytes(data))
    except UnreadableDocument:
        return
    assert sum(len(file.data) for file in found.files) <= 1000


def test_too_many_members_condemn_the_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    with pytest.raises(UnreadableDocument, match="4 members"):
        opened(zipped({f"{n}.txt": b"x" for n in range(4)}))


def test_an_encrypted_or_unreadable_member_is_refused_alone() -> None:
    data = bytearray(zipped({"locked.txt": b"secret", "open.txt": b"text", "tool.exe": b"MZ\0\0"}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    found = opened(bytes(data))
    assert [file.filename for file in found.files] == ["open.txt"]
    reasons = dict(found.refused)
    assert "encrypted" in reasons["locked.txt"]
    assert "cannot be read" in reasons["tool.exe"]


def test_a_member_larger_than_a_document_may_be_is_refused_alone() -> None:
    found = opened(zipped({"big.txt": b"word " * LIMIT, "small.txt": b"x"}, zipfile.ZIP_STORED))
    assert [file.filename for file in found.files] == ["small.txt"]
    assert "at most" in dict(found.refused)["big.txt"]


def test_a_damaged_archive_is_said_so() -> None:
    with pytest.raises(UnreadableDocument, match="damaged"):
        opened(zipped({"a.txt": b"one" * 100})[:60])


def test_a_spreadsheet_is_no_archive() -> None:
    with pytest.raises(UnsupportedMediaType):
        opened(zipped({"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}), "book.xlsx")


def test_an_email_is_read_with_headers_body_and_names_of_attachments() -> None:
    parsed = parse(message(lease_pdf=make_pdf([["Rent"]])), "mail.eml")
    assert parsed.title == "The lease"
    assert parsed.text.splitlines()[:2] == ["From: Ann <ann@firm.test>", "To: bob@firm.test"]
    assert "Attachments: lease.pdf" in parsed.text
    assert "the rent is due." in parsed.text
    assert "steal" not in parsed.text


def test_an_email_with_html_alone_is_read_as_a_reader_sees_it() -> None:
    mail = EmailMessage()
    mail["Subject"] = "Only HTML"
    mail.set_content("<p>Visible</p><script>hidden()</script>", subtype="html")
    text = parse(mail.as_bytes(), "mail.eml").text
    assert "Visible" in text
    assert "hidden" not in text


def test_attachments_are_files_of_their_own_and_forwarded_mail_is_mail() -> None:
    outer = EmailMessage()
    outer["Subject"], outer["From"] = "Fwd", "ann@firm.test"
    outer.set_content("See below.")
    inner = EmailMessage()
    inner["Subject"] = "Inner"
    inner.set_content("The inner text.")
    outer.add_attachment(inner)
    outer.add_attachment(b"plain words", maintype="text", subtype="plain", filename="../../note.txt")
    found = opened(outer.as_bytes(), "mail.eml")
    names = [file.filename for file in found.files]
    assert names == ["mail.eml", "mail.eml/message-1.eml", "mail.eml/note.txt"]
    assert "The inner text." in parse(found.files[1].data, names[1]).text


@pytest.mark.parametrize("data", [b"\x00\xff" * 50, b"no headers at all, just words"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableDocument):
        parse(data, "mail.eml")


async def test_an_archive_is_filed_as_documents_each_with_its_job(site: Site) -> None:
    headers = await site.headers("archives")
    data = zipped({"one.txt": b"The first clause.", "two/mail.eml": message(note_txt=b"A note."), "bad.exe": b"MZ\0"})
    response = await site.client.post("/api/v1/documents", files={"f": ("bundle.zip", data)}, headers=headers)
    assert response.status_code == 202, response.text
    body = response.json()
    names = [one["filename"] for one in body["documents"]]
    assert names == ["one.txt", "two/mail.eml", "two/mail.eml/note.txt"]
    assert [one["filename"] for one in body["refused"]] == ["bad.exe"]
    assert {(await site.job(one["job_id"], headers))["status"] for one in body["documents"]} == {"succeeded"}
    nothing = await site.client.post(
        "/api/v1/documents", files={"f": ("n.zip", zipped({"x.exe": b"MZ\0"}))}, headers=headers
    )
    assert nothing.status_code == 422
    bomb = zipped({"bomb.txt": bytes(50 * 2**20)})
    refused = await site.client.post("/api/v1/documents", files={"f": ("bomb.zip", bomb)}, headers=headers)
    assert refused.status_code == 422
    put = await site.client.put(
        f"/api/v1/documents/{body['documents'][0]['id']}", files={"f": ("b.zip", data)}, headers=headers
    )
    assert put.status_code == 400


def test_entities_in_markup_and_mail_are_not_expanded() -> None:
    laughs = b'<!DOCTYPE html [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><html><body><p>&b; kept</p></body></html>'
    text = parse(laughs, "a.html").text
    assert "kept" in text
    assert "haha" not in text
    outside = b'<!DOCTYPE html [<!ENTITY x SYSTEM "file:///etc/passwd">]><html><body><p>&x; kept</p></body></html>'
    assert "root:" not in parse(outside, "a.html").text


async def test_an_empty_file_fails_with_its_reason_and_the_others_go_on(site: Site) -> None:
    headers = await site.headers("empty-file")
    data = zipped({"empty.txt": b"", "good.txt": b"Some words."})
    response = await site.client.post("/api/v1/documents", files={"f": ("bundle.zip", data)}, headers=headers)
    jobs = [await site.job(one["job_id"], headers) for one in response.json()["documents"]]
    assert [job["status"] for job in jobs] == ["failed", "succeeded"]
    assert "no bytes" in jobs[0]["error"]


@pytest.mark.slow
def test_ten_thousand_pages_are_read_and_one_more_is_refused() -> None:
    pages = [[f"Page {n}"] for n in range(1, 10_002)]
    parsed = parse(make_pdf(pages[:-1]), "long.pdf")
    assert (len(parsed.pages), parsed.pages[-1].number) == (10_000, 10_000)
    with pytest.raises(UnreadableDocument, match="1 to 10000"):
        parse(make_pdf(pages), "longer.pdf")
