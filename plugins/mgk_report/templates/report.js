"use strict";
// Charts are drawn when they come into view: a run of a hundred phases opens at once.
function draw(element) {
  const data = element.querySelector("script");
  if (!data) return;
  data.remove();
  vegaEmbed(element, JSON.parse(data.textContent), { actions: false, renderer: "svg" })
    .then(() => element.setAttribute("data-drawn", ""));
}
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      watcher.unobserve(entry.target);
      draw(entry.target);
    }
  }
}, { rootMargin: "200px" });
document.querySelectorAll(".chart").forEach((element) => watcher.observe(element));

document.querySelectorAll(".switch").forEach((button) => {
  button.addEventListener("click", () => {
    const table = button.closest("section").querySelector(".matrix");
    const shares = table.classList.toggle("shares");
    button.setAttribute("aria-pressed", String(shares));
    button.textContent = shares ? "Show the scores" : "Show the share of each gain that is kept";
  });
});

// On paper everything is open and drawn.
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((element) => { element.open = true; });
  document.querySelectorAll(".chart").forEach(draw);
});

if (document.body.hasAttribute("data-live")) {
  const events = new EventSource("events");
  events.onmessage = () => {
    sessionStorage.setItem("scroll", String(window.scrollY));
    window.location.reload();
  };
  window.scrollTo(0, Number(sessionStorage.getItem("scroll") || 0));
}
