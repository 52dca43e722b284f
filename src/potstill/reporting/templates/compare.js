"use strict";
// Any two models of a suite, question by question: the widest differences first. Without it, all of them stand there.
for (const article of document.querySelectorAll("article.compare")) {
  const [later, earlier] = article.querySelectorAll(".choose select");
  const list = article.querySelector(".questions");
  const questions = [...list.children];
  const valueOf = (question, model) => {
    const found = [...question.querySelectorAll(".answer")].find((one) => one.dataset.model === model);
    return found && found.dataset.value !== "" ? Number(found.dataset.value) : null;
  };
  const show = () => {
    const apart = new Map();
    for (const question of questions) {
      const [one, other] = [valueOf(question, later.value), valueOf(question, earlier.value)];
      apart.set(question, one === null || other === null ? null : one - other);
      for (const answer of question.querySelectorAll(".answer")) {
        answer.hidden = ![later.value, earlier.value].includes(answer.dataset.model);
      }
    }
    const far = Math.max(...[...apart.values()].map((value) => Math.abs(value ?? 0)), 0) || 1;
    for (const [question, value] of apart) {
      const text = value === null ? "–" : value === 0 ? "0" : `${value > 0 ? "+" : "−"}${Math.abs(value).toFixed(2)}`;
      question.querySelector(".apart").textContent = text;
      const [bar, share] = [question.querySelector(".diverging rect"), (50 * Math.abs(value ?? 0)) / far];
      bar.setAttribute("class", value > 0 ? "more" : "less");
      bar.setAttribute("x", `${value > 0 ? 50 : 50 - share}%`);
      bar.setAttribute("width", `${share}%`);
    }
    questions.sort((a, b) => Math.abs(apart.get(b) ?? -1) - Math.abs(apart.get(a) ?? -1));
    list.append(...questions);
  };
  for (const select of [later, earlier]) select.addEventListener("change", show);
  article.querySelector(".choose").hidden = false;
  article.querySelector(".pair").textContent = "Before each question: what the first scored more than the other.";
  show();
}
