/** Native dialogs: a form, a drawer, a question before something is lost. */
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { asProblem } from "../resource";
import type { Problem } from "../api";

interface DialogProps {
  title: string;
  close: () => void;
  kind?: "drawer" | "palette";
  children: ComponentChildren;
}

export function Dialog({ title, close, kind, children }: DialogProps) {
  const element = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    const dialog = element.current!;
    dialog.showModal();
    return () => dialog.close();
  }, []);
  const outside = (event: MouseEvent) => event.target === element.current && kind && close();
  return (
    <dialog ref={element} class={kind ?? ""} aria-label={title} onCancel={(event) => (event.preventDefault(), close())} onClick={outside}>
      {kind !== "palette" && (
        <div class="head">
          <h2>{title}</h2>
          <button type="button" class="plain" onClick={close} aria-label="Close">✕</button>
        </div>
      )}
      {children}
    </dialog>
  );
}

export interface FieldSpec {
  name: string;
  label: string;
  hint?: string;
  kind?: "text" | "password" | "number" | "email" | "date" | "textarea" | "select" | "choices" | "checkbox" | "list";
  options?: string[] | Record<string, string>;
  required?: boolean;
  autocomplete?: string;
  value?: string | boolean | string[] | number | null;
}

export type Values = Record<string, unknown>;
const labelled = (options: FieldSpec["options"]): [string, string][] => (Array.isArray(options) ? options.map((one) => [one, one]) : Object.entries(options ?? {}));

function Input({ spec, error }: { spec: FieldSpec; error: string | undefined }) {
  const { name, kind = "text", value } = spec;
  const shared = { id: `field-${name}`, name, "aria-invalid": Boolean(error), "aria-describedby": error || spec.hint ? `about-${name}` : undefined, required: spec.required };
  if (kind === "textarea") return <textarea {...shared} defaultValue={String(value ?? "")} />;
  if (kind === "select") {
    return <select {...shared}>{labelled(spec.options).map(([option, text]) => <option value={option} selected={option === value}>{text}</option>)}</select>;
  }
  const type = (kind === "list" || kind === "choices" ? "text" : kind) as "text";
  const shown = Array.isArray(value) ? value.join(", ") : String(value ?? "");
  return <input {...shared} type={type} step={kind === "number" ? "any" : undefined} defaultValue={shown} autocomplete={spec.autocomplete ?? (kind === "password" ? "new-password" : "off")} />;
}

export function Field({ spec, error }: { spec: FieldSpec; error?: string }) {
  const { name, label, kind, hint, value } = spec;
  const about = (
    <div id={`about-${name}`} class={error ? "error" : "muted small"} role={error ? "alert" : undefined}>{error ?? hint}</div>
  );
  if (kind === "checkbox") {
    return <div class="field"><label class="check"><input type="checkbox" name={name} defaultChecked={Boolean(value)} />{label}</label>{(error || hint) && about}</div>;
  }
  if (kind === "choices") {
    const held = (value as string[] | undefined) ?? [];
    return (
      <div class="field" role="group" aria-labelledby={`label-${name}`}>
        <span class="label" id={`label-${name}`}>{label}</span>
        <div class="choices">
          {labelled(spec.options).map(([option, text]) => <label class="check"><input type="checkbox" name={name} value={option} defaultChecked={held.includes(option)} />{text}</label>)}
        </div>
        {(error || hint) && about}
      </div>
    );
  }
  return <div class="field"><label for={`field-${name}`}>{label}</label><Input spec={spec} error={error} />{(error || hint) && about}</div>;
}

/** What was typed, by the fields' names; empty texts and numbers are null. */
export function valuesOf(form: HTMLFormElement, fields: FieldSpec[]): Values {
  const data = new FormData(form);
  const read = ({ name, kind }: FieldSpec): unknown => {
    const text = String(data.get(name) ?? "").trim();
    if (kind === "checkbox") return data.has(name);
    if (kind === "choices") return data.getAll(name).map(String);
    if (kind === "list") return text.split(",").map((part) => part.trim()).filter(Boolean);
    if (kind === "number") return text === "" ? null : Number(text);
    return text === "" ? null : text;
  };
  return Object.fromEntries(fields.map((field) => [field.name, read(field)]));
}

interface FormProps {
  fields: FieldSpec[];
  submit: string;
  danger?: boolean;
  act: (values: Values) => Promise<unknown>;
  cancel?: () => void;
  children?: ComponentChildren;
}

/** Errors stand beside the field that the API names, others above the buttons. */
export function Form({ fields, submit, danger, act, cancel, children }: FormProps) {
  const [error, setError] = useState<Problem | null>(null);
  const [busy, setBusy] = useState(false);
  const send = async (event: SubmitEvent) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await act(valuesOf(event.currentTarget as HTMLFormElement, fields));
    } catch (caught) {
      setError(asProblem(caught));
    }
    setBusy(false);
  };
  const at = fields.find(({ name }) => error?.param === name || error?.param?.startsWith(`${name}.`) || error?.param?.startsWith(`${name}[`));
  return (
    <form onSubmit={send} noValidate={false}>
      <div class="body">
        {children}
        {fields.map((spec) => <Field key={spec.name} spec={spec} error={spec === at ? error!.message : undefined} />)}
        {error && !at && <p class="bad" role="alert">{error.message}</p>}
      </div>
      <div class="foot">
        {cancel && <button type="button" onClick={cancel}>Cancel</button>}
        <button class={danger ? "danger" : "primary"} disabled={busy}>{busy ? "Working…" : submit}</button>
      </div>
    </form>
  );
}

export function FormDialog({ title, close, ...form }: Omit<FormProps, "cancel"> & { title: string; close: () => void }) {
  const act = async (values: Values) => {
    await form.act(values);
    close();
  };
  return <Dialog title={title} close={close}><Form {...form} act={act} cancel={close} /></Dialog>;
}

interface ConfirmProps {
  title: string;
  text: ComponentChildren;
  verb: string;
  /** Has to be typed, where something is destroyed. */
  typed?: string;
  act: () => Promise<unknown>;
  close: () => void;
}

export function Confirm({ title, text, verb, typed, act, close }: ConfirmProps) {
  const fields: FieldSpec[] = typed ? [{ name: "typed", label: `Type ${typed} to confirm`, required: true }] : [];
  const checked = async (values: Values) => {
    if (typed && values.typed !== typed) throw new Error("That is not the name.");
    await act();
  };
  return <FormDialog title={title} fields={fields} submit={verb} danger act={checked} close={close}><p>{text}</p></FormDialog>;
}
