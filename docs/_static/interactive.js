// Interactive pages inside a page: as high as their content, light or dark as the page is.
"use strict";
function theme() {
  return { theme: document.body.dataset.theme || "auto" };
}
addEventListener("message", (event) => {
  for (const frame of document.querySelectorAll("iframe.interactive")) {
    if (event.source === frame.contentWindow && Number.isFinite(event.data?.height)) {
      frame.style.height = `${event.data.height}px`;
      frame.contentWindow.postMessage(theme(), "*");
    }
  }
});
addEventListener("DOMContentLoaded", () => {
  new MutationObserver(() => {
    for (const frame of document.querySelectorAll("iframe.interactive")) {
      frame.contentWindow.postMessage(theme(), "*");
    }
  }).observe(document.body, { attributeFilter: ["data-theme"] });
});
