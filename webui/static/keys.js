// Keys: "/" goes to the search field, "g" then "o", "n" or "p" to a page. Everything works without.
(() => {
  "use strict";
  const pages = { o: "/", n: "/nodes", p: "/pods" };
  let went = 0;
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      const field = document.querySelector("[data-key='/']");
      if (field) { event.preventDefault(); field.focus(); }
    } else if (event.key === "g") {
      went = event.timeStamp;
    } else if (pages[event.key] && event.timeStamp - went < 1000) {
      location.href = pages[event.key];
    }
  });
})();
