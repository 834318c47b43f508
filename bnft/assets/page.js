// Puts the page's language on what the chat component labels in English only, tells screen readers the language, and
// brings a crisis card into sight.
(() => {
  const words = WORDS_HERE;
  const root = document.documentElement;
  const known = new Map();
  for (const language of Object.values(words)) {
    for (const [name, word] of Object.entries(language)) known.set(word, name);
  }
  const translate = (node, attribute) => {
    const shown = node.getAttribute(attribute);
    if (!shown) return;
    const chosen = words[root.lang] || words.bn;
    const name = chosen[shown] ? shown : known.get(shown);
    if (name && chosen[name] !== shown) return node.setAttribute(attribute, chosen[name]);
    for (const start of ["user's message: ", "bot's message: "]) {
      if (shown.startsWith(start)) node.setAttribute(attribute, chosen[start] + shown.slice(start.length));
    }
  };
  let planned = false;
  let called = "";
  const showCard = () => {
    const card = document.querySelector("#card .card:not(.soft)");
    const text = card ? card.innerText : "";
    if (text && text !== called) card.scrollIntoView({ block: "nearest" });
    called = text;
  };
  const all = () => {
    planned = false;
    showCard();
    for (const node of document.querySelectorAll(".chat-log [aria-label], .chat-log [title]")) {
      translate(node, "aria-label");
      translate(node, "title");
    }
  };
  const plan = () => {
    if (!planned) {
      planned = true;
      requestAnimationFrame(all);
    }
  };
  window.bnftLanguage = (language) => {
    root.lang = language === "en" ? "en" : "bn";
    plan();
  };
  root.lang = "bn";
  new MutationObserver(plan).observe(root, {
    subtree: true,
    childList: true,
    attributes: true,
    attributeFilter: ["aria-label", "title"],
  });
})();
