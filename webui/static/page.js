// What a page does beyond links: it refreshes itself, listens to keys, copies commands and draws the charts.
// Everything else works without.
(() => {
  "use strict";
  const EVERY_MS = 3000, HIDDEN_MS = 60000, LONGEST_MS = 60000, CHART_MS = 30000;
  document.documentElement.classList.add("js");

  // ---- refreshing: slower where nobody looks or nobody answers, and honest about it
  let failures = 0, timer = 0, since = "";
  const live = () => document.getElementById("live");
  const later = () => {
    clearTimeout(timer);
    const wait = document.hidden ? HIDDEN_MS : Math.min(EVERY_MS * 2 ** failures, LONGEST_MS);
    timer = setTimeout(refresh, wait);
  };
  const refresh = () => {
    live()?.dispatchEvent(new Event("refresh"));
    later();
  };
  const failed = () => {
    failures += 1;
    since = since || new Date().toISOString().slice(11, 19);
    const line = document.querySelector(".as-of");
    if (line) {
      line.classList.add("stale");
      line.querySelector("span").textContent = ` · these pages have not answered since ${since} UTC; shown is the last`;
    }
    later();
  };
  document.addEventListener("htmx:after:request", (event) => {
    const status = event.detail.ctx.response.status;
    if (status === 401) location.reload();
    if (status < 400) { failures = 0; since = ""; }
  });
  document.addEventListener("htmx:response:error", failed);
  document.addEventListener("htmx:error", failed);
  document.addEventListener("visibilitychange", () => { if (document.hidden) later(); else refresh(); });
  later();

  // ---- keys
  const pages = { o: "/", n: "/nodes", p: "/pods" };
  let went = 0;
  const step = (event) => {
    const row = event.target.closest("tbody tr");
    if (!row) return;
    const next = event.key === "ArrowDown" ? row.nextElementSibling : row.previousElementSibling;
    const link = next?.querySelector("a");
    if (link) { event.preventDefault(); link.focus(); }
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea, dialog");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      const field = document.querySelector("[data-key='/']") || document.querySelector("[data-key='everything']");
      if (field) { event.preventDefault(); field.focus(); }
    } else if (event.key === "?") {
      document.getElementById("keys").showModal();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      step(event);
    } else if (event.key === "g") {
      went = event.timeStamp;
    } else if (pages[event.key] && event.timeStamp - went < 1000) {
      location.href = pages[event.key];
    }
  });

  // ---- buttons
  const copy = async (button) => {
    const text = button.parentElement.querySelector("pre");
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {  // Not a secure context: what can be selected can be copied by hand.
      getSelection().selectAllChildren(text);
      return;
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.opens) document.getElementById(button.dataset.opens).showModal();
    if ("copies" in button.dataset) copy(button);
    if (button.dataset.window) {
      const figure = button.closest("figure");
      figure.querySelectorAll("[data-window]").forEach((one) => one.setAttribute("aria-pressed", one === button));
      draw(figure.querySelector("[data-history]"));
    }
  });

  // ---- charts
  const plots = new Map();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
  const SECONDS = { "1h": 3600, "6h": 6 * 3600, "1d": 86400, "7d": 7 * 86400 };
  const span = (place, found) => {
    const end = found.at.at(-1) ?? Date.now() / 1000;
    place.range = [end - SECONDS[windowOf(place)], end];
  };
  const windowOf = (place) => place.closest("figure").querySelector("[aria-pressed='true']")?.dataset.window || "1h";
  const when = (place, seconds) => {
    const text = new Date(seconds * 1000).toISOString();
    return SECONDS[windowOf(place)] > 86400 ? text.slice(5, 10) : text.slice(11, 16);
  };
  const options = (place) => {
    const axis = { stroke: () => colour("--chart-text"), grid: { stroke: () => colour("--chart-line"), width: 1 } };
    const line = (label, name, dash) => ({ label, stroke: () => colour(name), width: 2, dash, points: { show: (plot) => plot.data[0].length < 3 } });
    return {
      width: place.clientWidth, height: place.clientHeight, legend: { show: false }, cursor: { show: false },
      scales: { x: { range: () => place.range }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      axes: [{ ...axis, values: (_, ticks) => ticks.map((one) => when(place, one)) }, { ...axis, size: 72, values: (_, ticks) => ticks.map((one) => `${Math.round(one / 1024)} GiB`) }],
      series: [{}, line("allocated", "--chart-allocated"), line("used", "--chart-used", [6, 4])],
    };
  };
  const draw = async (place) => {
    const chosen = windowOf(place);
    const url = new URL(place.dataset.history, location.href);
    url.searchParams.set("window", chosen);
    let found;
    try {
      const answer = await fetch(url);
      if (!answer.ok) return;
      found = await answer.json();
    } catch {
      return;
    }
    place.closest("figure").querySelector("[data-words]").textContent = found.words;
    span(place, found);
    const data = [found.at, found.allocated_mib, found.used_mib];
    if (!plots.has(place)) {
      plots.set(place, new uPlot(options(place), data, place));
      new ResizeObserver(() => plots.get(place).setSize({ width: place.clientWidth, height: place.clientHeight })).observe(place);
    } else {
      plots.get(place).setData(data);
    }
  };
  const drawAll = () => { if (!document.hidden) document.querySelectorAll("[data-history]").forEach(draw); };
  setInterval(drawAll, CHART_MS);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((plot) => plot.redraw()));
  drawAll();
})();
