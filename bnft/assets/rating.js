// Keys for raters: Tab goes from question to question, the arrows and digits answer; a digit also goes on to the next
// question. After a rating the new conversation comes into sight; after an incomplete one, the first open question.
// Answers that are not sent yet live through a reload: phones drop pages that are out of sight.
(() => {
  const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const choices = (wrap) => [...wrap.querySelectorAll("input[type=radio]")];
  const questions = () => [...document.querySelectorAll("#rating .ask .wrap")].map(choices).filter((inputs) => inputs.length);
  const stop = (inputs) => inputs.find((input) => input.checked) || inputs[0];
  const oneStop = (inputs, at = stop(inputs)) => inputs.forEach((input) => (input.tabIndex = input === at ? 0 : -1));

  // Gradio names every choice apart, so the browser does not know that they belong together.
  document.addEventListener("focusin", (event) => {
    const wrap = event.target.matches("input[type=radio]") && event.target.closest(".wrap");
    if (!wrap) return;
    oneStop(choices(wrap), event.target);
    wrap.setAttribute("role", "radiogroup");
    wrap.setAttribute("aria-label", wrap.parentElement.querySelector("[data-testid=block-info]").innerText);
  });

  document.addEventListener("keydown", (event) => {
    const wrap = event.target.matches("input[type=radio]") && event.target.closest(".wrap");
    if (!wrap || event.ctrlKey || event.altKey || event.metaKey) return;
    const inputs = choices(wrap);
    const bengali = "০১২৩৪৫৬৭৮৯".indexOf(event.key);
    const key = bengali >= 0 ? String(bengali) : event.key;
    const step = STEPS[key];
    const numbered = inputs.some((input) => input.value === "1"); // else the first, second or third choice
    const chosen = step
      ? inputs.at((inputs.indexOf(event.target) + step) % inputs.length)
      : /^[0-9]$/.test(key) && (numbered ? inputs.find((input) => input.value === key) : inputs[key - 1]);
    if (!chosen) return;
    event.preventDefault();
    chosen.click();
    if (step) return chosen.focus();
    const all = questions();
    const next = all[all.findIndex((others) => others.includes(chosen)) + 1];
    (wrap.closest("#rating") ? (next ? stop(next) : document.querySelector("#send-rating")) : chosen).focus();
  });

  const screen = () => document.querySelector("#progress").innerText + document.querySelector("#said").innerText;
  document.addEventListener("change", (event) => {
    if (!event.target.closest("#rating .ask")) return;
    const picked = questions().map((inputs) => inputs.findIndex((input) => input.checked));
    sessionStorage.setItem("bnft-draft", JSON.stringify({ screen: screen(), picked }));
  });
  const restore = () => {
    const draft = JSON.parse(sessionStorage.getItem("bnft-draft") || "{}");
    if (draft.screen === screen()) questions().forEach((inputs, i) => inputs[draft.picked[i]]?.click());
  };

  let shown = "";
  window.bnftRated = () =>
    requestAnimationFrame(() => {
      const said = document.querySelector("#said .said");
      if (!said) return;
      const progress = document.querySelector("#progress").innerText;
      if (progress === shown) {
        const open = questions().find((inputs) => !inputs.some((input) => input.checked));
        return open && open[0].focus();
      }
      shown = progress;
      restore();
      questions().forEach((inputs) => oneStop(inputs));
      window.scrollTo(0, 0);
      said.focus({ preventScroll: true });
    });
})();
