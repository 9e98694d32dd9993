/** Sentences in the reader's language, with English where a translation lacks one. */

function find(strings, key) {
  let found = strings;
  for (const part of key.split(".")) found = found?.[part];
  return found;
}

function fill(text, vars) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in vars ? String(vars[name]) : whole));
}

/**
 * The translating function of a table of nested strings. `t("key.sub", {count: 2})`: {count} and other names are filled
 * in; an entry with "one" and "other" is chosen by `count`. An unknown key is shown as it is.
 * `t.or(key, text)` gives `text` where there is no entry: for what the server words itself.
 * @param {Object} strings
 * @param {string} lang
 * @returns {((key: string, vars?: Object<string, *>) => string) & {or: Function, lang: string}}
 */
export function translator(strings, lang = "en") {
  const plural = new Intl.PluralRules(lang);
  const lookup = (key, vars) => {
    let found = find(strings, key);
    if (found && typeof found === "object") found = found[plural.select(Number(vars.count ?? 0))] ?? found.other;
    return typeof found === "string" ? fill(found, vars) : null;
  };
  const t = (key, vars = {}) => lookup(key, vars) ?? key;
  t.or = (key, text, vars = {}) => lookup(key, vars) ?? text;
  t.lang = lang;
  return t;
}

/**
 * Loads the strings of the host's language.
 * @param {import("./api.js").Api} api
 * @param {string} lang
 */
export async function loadStrings(api, lang) {
  const strings = await api.get(`/strings?lang=${encodeURIComponent(lang)}`);
  // The language that is there, which numbers and plurals then follow too.
  return translator(strings, strings.language);
}
