/** The pictures of a dataset with their captions, which are edited in place. */

import { button, iconButton, note, spinner } from "./controls.js";
import { clear, h, setText } from "./dom.js";
import { icon } from "./icons.js";

const PAGE = 200;
const SIDE = 160;

/**
 * The pictures of one dataset.
 * @param {import("./panel.js").Ctx} ctx
 * @param {{id: string, writable: boolean, hint: () => string, onChange: () => void}} dataset
 *   hint: what stands where a caption is empty; onChange: a caption or the list was changed
 * @returns {{root: HTMLElement, load: () => Promise<void>, hint: () => void}}
 */
export function pictureList(ctx, dataset) {
  const { t, api } = ctx;
  const list = h("ul", { class: "pictures", "data-test": "pictures", "aria-label": t("pictures.list") });
  const foot = h("div", { class: "row center" });
  const root = h("div", { class: "pictures-box" }, list, foot);
  const page = { ...dataset, ctx, list, rows: [] };

  const more = async (offset) => {
    clear(foot, spinner(t("loading")));
    const query = `id=${encodeURIComponent(dataset.id)}&offset=${offset}`;
    try {
      const found = await api.get(`/datasets/pictures?${query}`);
      if (offset === 0) clear(list);
      for (const picture of found.pictures) list.append(pictureRow(page, picture));
      drawFoot(list.children.length, found.total, found.note);
    } catch (error) {
      if (error.name !== "ApiError") throw error;
      clear(foot, note("error", error.message), retry(() => more(offset)));
    }
  };
  const retry = (again) => button({ label: t("retry"), icon: "refresh", onClick: again });
  const drawFoot = (seen, total, remark) => {
    clear(foot, remark ? h("p", { class: "small muted grow" }, remark) : null);
    if (seen >= total) return;
    const label = t("pictures.more", { count: Math.min(PAGE, total - seen) });
    foot.append(
      h("span", { class: "small muted" }, t("pictures.seen", { seen, total })),
      button({ label, onClick: () => more(list.children.length), test: "pictures-more" }),
    );
  };
  const hint = () => {
    for (const input of list.querySelectorAll("textarea")) input.placeholder = dataset.hint();
  };
  return { root, load: () => more(0), hint };
}

function thumbnail({ ctx, id }, name) {
  const query = `id=${encodeURIComponent(id)}&name=${encodeURIComponent(name)}&size=${SIDE}`;
  const image = h("img", { class: "thumb", src: ctx.api.url(`/datasets/thumb?${query}`), alt: name, loading: "lazy" });
  const broken = () => h("span", { class: "thumb broken", title: name }, icon("picture"));
  image.addEventListener("error", () => image.replaceWith(broken()));
  return image;
}

function pictureRow(page, picture) {
  const { t } = page.ctx;
  const times = () => h("span", { class: "chip" }, t("pictures.repeats", { count: picture.repeats }));
  const mark = h("span", { class: "saved-mark", role: "status" });
  const fault = h("div", { class: "field-note danger-text", hidden: !picture.note }, picture.note);
  const input = captionInput(page, picture, mark, fault);
  const remove = () => removePicture(page, picture, root);
  const bin = () =>
    iconButton({ label: t("pictures.remove", { name: picture.name }), icon: "trash", onClick: remove, test: "remove" });
  const head = h(
    "div",
    { class: "row picture-head" },
    h("span", { class: "small muted ellipsis grow", title: picture.name }, picture.name),
    picture.repeats > 1 ? times() : null,
    mark,
    page.writable ? bin() : null,
  );
  const root = h(
    "li",
    { class: "picture", "data-test": "picture", "data-name": picture.name },
    thumbnail(page, picture.name),
    h("div", { class: "picture-text" }, head, input, fault),
  );
  return root;
}

/** Saved when it is left; Enter goes on to the next picture, Escape takes the change back. */
function captionInput(page, picture, mark, fault) {
  const { t } = page.ctx;
  const input = h("textarea", {
    class: "input area caption", rows: 2, value: picture.caption, readOnly: !page.writable, maxlength: 4000,
    placeholder: page.hint(), "aria-label": t("pictures.caption", { name: picture.name }), "data-test": "caption",
  });
  input.addEventListener("blur", () => saveCaption(page, picture, { input, mark, fault }));
  input.addEventListener("input", () => clear(mark));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") input.value = picture.caption;
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    step(page.list, input, 1);
  });
  return input;
}

function step(list, input, by) {
  const inputs = [...list.querySelectorAll("textarea")];
  const next = inputs[inputs.indexOf(input) + by];
  if (next) next.focus();
  else input.blur();
}

async function saveCaption(page, picture, { input, mark, fault }) {
  const text = input.value.trim();
  if (text === picture.caption.trim() || !page.writable) return;
  const { t, api } = page.ctx;
  clear(mark, spinner(t("saving")));
  try {
    await api.post("/datasets/caption", { id: page.id, name: picture.name, text });
    picture.caption = text;
    fault.hidden = true;
    const words = h("span", { class: "visually-hidden" }, t("saved"));
    clear(mark, h("span", { class: "saved", title: t("saved") }, icon("check"), words));
    page.onChange();
  } catch (error) {
    if (error.name !== "ApiError") throw error;
    clear(mark);
    setText(fault, error.message);
    fault.hidden = false;
  }
}

async function removePicture(page, picture, root) {
  const { t, api, confirm, toast } = page.ctx;
  const question = t("pictures.remove_sure", { name: picture.name });
  if (!(await confirm(question, { yes: t("pictures.remove_yes"), danger: true }))) return;
  try {
    await api.post("/datasets/remove", { id: page.id, name: picture.name });
    const next = root.nextElementSibling ?? root.previousElementSibling;
    root.remove();
    next?.querySelector("textarea").focus();
    page.onChange();
  } catch (error) {
    if (error.name !== "ApiError") throw error;
    toast("error", error.message);
  }
}
