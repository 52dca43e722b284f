// Keys of potstill's pages. Every one of them does what a link or a button on the page does too.
"use strict";
(() => {
  const dialog = document.getElementById("keys");
  const showKeys = () => dialog && !dialog.open && dialog.showModal();
  const rows = () => [...document.querySelectorAll("#rows > li > a, #rows > details > summary")];
  const follow = (rel) => {
    const link = document.querySelector(`a[rel="${rel}"]`);
    if (link) link.click();
  };

  // The row that is next to the one with the focus; a page of one row goes on to its neighbour.
  const move = (by) => {
    const all = rows();
    if (!all.length) return follow(by > 0 ? "next" : "prev");
    const at = all.indexOf(document.activeElement);
    const to = at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by;
    if (to >= 0 && to < all.length) all[to].focus();
  };

  const keys = {
    "/": () => document.querySelector('input[type="search"], textarea')?.focus(),
    "?": showKeys,
    j: () => move(1),
    k: () => move(-1),
    n: () => follow("next"),
    p: () => follow("prev"),
    u: () => follow("up"),
    g: () => document.querySelector("a.brand").click(),
  };
  const votes = { ArrowLeft: "1", ArrowRight: "2" };

  document.addEventListener("keydown", (event) => {
    const there = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || dialog?.open) return;
    if (there.closest("input, select, textarea")) {
      if (event.key === "Escape") there.blur();
      if (event.key === "Enter" && there.id === "question" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        there.form.requestSubmit();
      }
      return;
    }
    const wanted = votes[event.key] ?? event.key;
    const ballot = [...document.querySelectorAll("button[data-key]")].find((button) => button.dataset.key === wanted);
    if (ballot) {
      event.preventDefault();
      ballot.click();
      return;
    }
    const arrow = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (arrow && rows().includes(there)) {
      event.preventDefault();
      move(arrow);
    } else if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });

  // What changes something is sent once, however often it is pressed.
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "post") return;
    if (event.target.dataset.sent) event.preventDefault();
    event.target.dataset.sent = "yes";
  });
  window.addEventListener("pageshow", () => {
    document.querySelectorAll("form[data-sent]").forEach((form) => delete form.dataset.sent);
  });

  document.getElementById("show-keys")?.addEventListener("click", showKeys);
  // What is chosen is searched for at once; the button is there for whoever has no script.
  document.querySelectorAll("form.find select").forEach((select) => {
    select.addEventListener("change", () => select.form.requestSubmit());
  });
})();
