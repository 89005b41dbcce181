// What changes the service: each action is described, confirmed in a dialog, and its outcome is said.

import { el, render } from "./dom.js";
import { counted } from "./format.js";
import { plain } from "./words.js";

const AGES = [["any age", 0], ["older than 10 minutes", 600], ["older than an hour", 3600], ["older than a day", 86400]];
const SPANS = [["30 minutes", 1800], ["2 hours", 7200], ["8 hours", 28800], ["24 hours", 86400]];

const select = (name, label, options) =>
  el("label", {}, label, el("select", { name }, options.map(([text, value]) => el("option", { value }, text))));

/** By action: the heading, what will happen, the fields that a person fills in, and the body that is sent. */
const ACTIONS = {
  replay: {
    title: (asked) => `Replay dead letters: ${plain(asked.reason)}`,
    told: (asked) => `${counted(Number(asked.count), "letter")} with this reason. Each goes back into the queue as a request, within the queue's limits. A client that was told of its failure keeps that answer.`,
    fields: () => [select("older_than_s", "Which ones", AGES)],
    body: (asked, form) => ({ reason: asked.reason, kind: asked.kind, older_than_s: Number(form.get("older_than_s")), count_shown: Number(asked.count) }),
    verb: "Replay",
  },
  purge: {
    title: (asked) => `Purge dead letters: ${plain(asked.reason)}`,
    told: (asked) => `${counted(Number(asked.count), "letter")} with this reason. They are deleted, and nobody can bring them back.`,
    fields: () => [select("older_than_s", "Which ones", AGES),
      el("label", { class: "check" }, el("input", { type: "checkbox", required: true }), "I have looked at them, and nobody needs them.")],
    verb: "Purge for good",
  },
  silence: {
    title: (asked) => `Silence ${plain(asked.rule)}`,
    told: () => "The alert is judged and shown as before, and nobody is told of it. What still fires afterwards is told then.",
    fields: () => [select("for_s", "For", SPANS),
      el("label", {}, "Why (others will read this)", el("input", { name: "reason", required: true, maxlength: 200, autocomplete: "off" }))],
    body: (asked, form) => ({ alert: asked.alert, rule: "", for_s: Number(form.get("for_s")), reason: form.get("reason") }),
    verb: "Silence",
  },
  end_silence: {
    title: () => "End a silence",
    told: (asked) => `${asked.what}: what fires under it is told at once.`,
    fields: () => [],
    body: (asked) => ({ id: asked.id }),
    verb: "End it",
  },
};
ACTIONS.purge.body = ACTIONS.replay.body;

/** Opens the dialog of whatever button with `data-action` is pressed; `token()` is the snapshot's. */
export function listen(dialog, token) {
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-action]");
    if (button) open(dialog, button.dataset.action, { ...button.dataset }, token);
  });
}

function open(dialog, name, asked, token) {
  const action = ACTIONS[name];
  const outcome = el("p", { role: "status", class: "outcome" });
  const submit = el("button", { type: "submit", class: "primary" }, action.verb);
  const cancel = el("button", { type: "button" }, "Cancel");
  const form = el("form", {},
    el("h2", { id: "confirm-title" }, action.title(asked)), el("p", {}, action.told(asked)), action.fields(asked),
    outcome, el("div", { class: "buttons" }, cancel, submit));
  cancel.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    const { error, sentence } = await send(name, action.body(asked, new FormData(form)), token());
    render(outcome, error ? `It was not done: ${error}` : sentence || "Done.");
    cancel.textContent = "Close";
    submit.disabled = !error;
    if (!error) submit.remove();
    cancel.focus();
  });
  dialog.replaceChildren(form);
  dialog.showModal();
}

async function send(name, body, token) {
  try {
    const answer = await fetch(`api/actions/${name}`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-amn-page": "1", ...(token ? { "x-amn-token": token } : {}) },
      body: JSON.stringify(body),
    });
    const told = await answer.json().catch(() => ({}));
    return answer.ok ? { sentence: told.sentence } : { error: told.error ?? `the server answered ${answer.status}` };
  } catch {
    return { error: "the dashboard's process does not answer" };
  }
}
