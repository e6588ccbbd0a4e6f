/* What is asked of the reader: the token, and why a provider is isolated or reset. */

import { byId, say } from "./dom.js";
import { token } from "./feed.js";

const AUTHOR = "sentinel-author";

export class Dialogs {
  constructor() {
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.querySelector("[data-cancel]")?.addEventListener("click", () => dialog.close());
    }
    this._asksForToken = null;
  }

  /**
   * Ask for the token and keep it for as long as the tab is open; resolve with null if it is not given.
   *
   * @param {string} why What was wrong with the last one.
   */
  token(why) {
    say(byId("token-why"), why);
    this._asksForToken ??= this._open(byId("token-dialog"), keepToken).finally(() => (this._asksForToken = null));
    return this._asksForToken;
  }

  /** Ask why *name* is isolated, and for how long; null if it is not. */
  isolate(name) {
    return this._order(byId("isolate-dialog"), name, (form) => ({ seconds: Number(form.elements.seconds.value) }));
  }

  /** Ask whether *name* is really well; null if not. */
  reset(name) {
    return this._order(byId("reset-dialog"), name, () => ({}));
  }

  _order(dialog, name, more) {
    for (const place of dialog.querySelectorAll("[data-name]")) say(place, name);
    const { author } = dialog.querySelector("form").elements;
    author.value = localStorage.getItem(AUTHOR) ?? "";
    return this._open(dialog, (form) => {
      const said = Object.fromEntries(["reason", "author"].map((field) => [field, form.elements[field].value.trim()]).filter(([, text]) => text));
      if (said.author) localStorage.setItem(AUTHOR, said.author);
      return { ...said, ...more(form) };
    });
  }

  /** Open *dialog*; resolve with what *take* makes of its form, or null if it is cancelled. */
  _open(dialog, take) {
    const form = dialog.querySelector("form");
    dialog.showModal();
    return new Promise((resolve) => {
      let taken = null;
      const submit = (event) => {
        event.preventDefault();
        taken = take(form);
        dialog.close();
      };
      form.addEventListener("submit", submit);
      dialog.addEventListener("close", function closed() {
        form.removeEventListener("submit", submit);
        dialog.removeEventListener("close", closed);
        form.reset();
        resolve(taken);
      });
    });
  }
}

function keepToken(form) {
  token.set(form.elements.token.value.trim());
  return true;
}
