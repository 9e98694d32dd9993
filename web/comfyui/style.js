/** The look of what stands on nodes, put into the page once. */

/** @param {string[]} more sheets beside the common one */
export function addStyle(...more) {
  for (const name of ["nodes.css", ...more]) {
    const sheet = new URL(`./${name}`, import.meta.url).href;
    if (document.head.querySelector(`link[href="${sheet}"]`)) continue;
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = sheet;
    document.head.append(link);
  }
}
