/** The look of what stands on nodes, put into the page once. */

const SHEET = new URL("./nodes.css", import.meta.url).href;

export function addStyle() {
  if (document.head.querySelector(`link[href="${SHEET}"]`)) return;
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = SHEET;
  document.head.append(link);
}
