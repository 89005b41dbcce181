// What changes the service, and a look into one letter: each action says first what it will do, and then what it did.

import { el, render } from "./dom.js";
import { plain } from "./words.js";

const AGES = [["any age", 0], ["older than 10 minutes", 600], ["older than an hour", 3600], ["older than a day", 86400]];
const SPANS = [["30 minutes", 1800], ["2 hours", 7200], ["8 hours", 28800], ["24 hours", 86400]];

const select = (name, label, options) =>
  el("label", {}, label, el("select", { name }, options.map(([text, value]) => el("option", { value }, text))));
const ages = () => select("older_than_s", "Which ones", AGES);
const chosen = ({ reason, kind }, form) => ({ reason, kind, older_than_s: Number(form.get("older_than_s")) });

/**
 * By action: its heading, its fields, what is sent, and the word on its button. What will happen is `told`, or with
 * `asks` it is asked of the server, which also counts what the fields leave.
 */
const ACTIONS = {
  replay: {
    title: ({ reason }) => `Replay dead letters: ${plain(reason)}`,
    asks: true, fields: () => [ages()], body: chosen, verb: "Replay",
  },
  purge: {
    title: ({ reason }) => `Purge dead letters: ${plain(reason)}`,
    asks: true, body: chosen, verb: "Purge for good",
    fields: () => [ages(), el("label", { class: "check" },
      el("input", { type: "checkbox", required: true }), "I have looked at them, and nobody needs them.")],
  },
  silence: {
    title: ({ rule }) => `Silence ${plain(rule)}`,
    told: () => "The alert is judged and shown as before, and nobody is told of it. What still fires afterwards is told then.",
    fields: () => [select("for_s", "For", SPANS),
      el("label", {}, "Why (others will read this)", el("input", { name: "reason", required: true, maxlength: 200, autocomplete: "off" }))],
    body: ({ alert }, form) => ({ alert, for_s: Number(form.get("for_s")), reason: form.get("reason") }),
    verb: "Silence",
  },
  end_silence: {
    title: () => "End a silence",
    told: ({ what }) => `${what}: what fires under it is told at once.`,
    fields: () => [], body: ({ id }) => ({ id }), verb: "End it",
  },
};

/** Opens the dialog of whatever button with `data-action` is pressed. */
export function listen(dialog) {
  document.addEventListener("click", (event) => {
    const asked = event.target.closest?.("[data-action]")?.dataset;
    if (asked?.action === "peek") peek(dialog, asked.id);
    else if (asked) open(dialog, { ...asked });
  });
}

function open(dialog, asked) {
  const action = ACTIONS[asked.action];
  const told = el("p", { role: "status" }, action.told?.(asked) ?? "Counting …");
  const outcome = el("p", { role: "status", class: "outcome" });
  const submit = el("button", { type: "submit", class: "primary" }, action.verb);
  const cancel = closing(dialog, "Cancel");
  const form = el("form", {}, el("h2", { id: "confirm-title" }, action.title(asked)), told, action.fields(asked), outcome,
    el("div", { class: "buttons" }, cancel, submit));
  let count_shown = null;

  async function preview() {
    submit.disabled = true;
    const query = new URLSearchParams(action.body(asked, new FormData(form)));
    const { error, sentence, count } = await json(`api/actions/${asked.action}?${query}`);
    count_shown = count ?? null;
    render(told, error ?? sentence);
    submit.disabled = !count;
  }

  form.addEventListener("change", (event) => action.asks && event.target.name && preview());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    const body = action.body(asked, new FormData(form));
    const { error, sentence } = await json(`api/actions/${asked.action}`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-amn-page": "1" },
      body: JSON.stringify(action.asks ? { ...body, count_shown } : body),
    });
    render(outcome, error ? `It was not done: ${error}` : sentence || "Done.");
    cancel.textContent = "Close";
    if (error) submit.disabled = false;
    else submit.remove();
    if (error && action.asks) await preview();
    cancel.focus();
  });
  dialog.replaceChildren(form);
  dialog.showModal();
  if (action.asks) preview();
}

/** Shows one dead letter in full, as the server decoded it. */
async function peek(dialog, id) {
  const body = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The letter" }, "Asking …");
  dialog.replaceChildren(el("h2", { id: "confirm-title" }, `Dead letter ${id}`), body,
    el("div", { class: "buttons" }, closing(dialog, "Close")));
  dialog.showModal();
  const letter = await json(`api/letters/${encodeURIComponent(id)}`);
  render(body, letter.error ?? el("dl", { class: "letter" }, rows(letter)));
}

const rows = (values, before = "") => Object.entries(values).flatMap(([name, value]) =>
  value !== null && typeof value === "object" && !Array.isArray(value) ? rows(value, `${before}${plain(name)}: `)
    : el("div", {}, el("dt", {}, before + plain(name)), el("dd", {}, Array.isArray(value) ? value.join(", ") : String(value ?? "–"))));

function closing(dialog, text) {
  const button = el("button", { type: "button" }, text);
  button.addEventListener("click", () => dialog.close());
  return button;
}

/** The answer of the page's process as an object; `error` says what went wrong. */
async function json(address, options = {}) {
  try {
    const answer = await fetch(address, options);
    const found = await answer.json().catch(() => ({}));
    return answer.ok ? found : { ...found, error: found.error ?? `the page's process answered with status ${answer.status}` };
  } catch {
    return { error: "the page's process does not answer" };
  }
}
