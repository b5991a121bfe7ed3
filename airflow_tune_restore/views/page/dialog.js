/** A question before something is done, and the sentence that the server answers. */
const dialog = (() => {
  "use strict";
  const { el, button, foreign } = elements;

  /**
   * Ask, act, and show the answer.
   * @param {Object} question
   * @param {string} question.title
   * @param {Array<*>} question.body What is asked.
   * @param {string} question.yes The label of the button that does it.
   * @param {boolean} [question.is_danger] Whether it deletes something.
   * @param {function(): Promise<*>} question.act Does it, and returns a sentence or nodes.
   * @param {function(): void} [question.done] Called when the dialog is closed after it was done.
   * @returns {{refuse: function(): void}} `refuse` takes the button that does it away.
   */
  function ask({ title, body, yes, is_danger, act, done }) {
    const answer = el("div", { class: "answer", "aria-live": "polite" });
    const no = button("Cancel", () => box.close());
    const go = button(yes, run, { class: `button ${is_danger ? "danger" : "primary"}` });
    const box = el(
      "dialog",
      { "aria-labelledby": "dialog-title", onclose: close },
      el("h2", { id: "dialog-title" }, title),
      ...body,
      answer,
      el("div", { class: "buttons" }, no, go),
    );
    let is_done = false;

    async function run() {
      go.disabled = true;
      answer.replaceChildren(
        notices.loading("Working… This may take a minute, if it has to wait for the lease."),
      );
      try {
        const said = await act();
        is_done = true;
        answer.replaceChildren(notices.notice("good", said instanceof Node ? said : foreign(said)));
        go.remove();
        no.textContent = "Close";
      } catch (error) {
        answer.replaceChildren(notices.failure(error));
        go.disabled = false;
      }
      no.focus();
    }

    function close() {
      box.remove();
      if (is_done) done?.();
    }

    document.body.append(box);
    box.showModal();
    no.focus();
    return { refuse: () => go.remove() };
  }

  return { ask };
})();
