/** Light or dark: a host with colours of its own decides, else the reader's system does. */

// A page with ComfyUI's palette has this; its class names for dark and light have changed over the versions.
const HOST_COLOUR = "--comfy-menu-bg";

/** The brightness of a computed colour, 0 to 1, or null where it is not written in red, green and blue. */
function brightness(colour) {
  const parts = /^rgba?\(([\d.]+)[, ]+([\d.]+)[, ]+([\d.]+)/.exec(colour);
  if (!parts) return null;
  const [red, green, blue] = parts.slice(1).map(Number);
  return (0.299 * red + 0.587 * green + 0.114 * blue) / 255;
}

/**
 * Keeps `shell` light or dark as the host's own background is. Without colours of a host nothing is done.
 * @param {HTMLElement} shell
 * @returns {() => void} stops it
 */
export function followTheme(shell) {
  const look = () => {
    const style = getComputedStyle(shell);
    if (!style.getPropertyValue(HOST_COLOUR).trim()) return;
    const bright = brightness(style.backgroundColor);
    if (bright !== null) shell.style.setProperty("color-scheme", bright > 0.5 ? "light" : "dark");
  };
  const watch = new MutationObserver(look);
  for (const target of [document.documentElement, document.body]) {
    watch.observe(target, { attributes: true, attributeFilter: ["class", "style", "data-theme"] });
  }
  look();
  return () => watch.disconnect();
}
