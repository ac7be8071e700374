// The sheet on which people judge. What they choose lives here and is sent to the server whole, with a number, at each
// change: a server that is slow, or busy with an older state, can neither lose a key nor put an old choice back.
// An act (save, skip, a choice) closes the sheet until the server lays out another one or says why it will not.

const WAITING_MS = 400; // after which somebody who waits is told so
const UNANSWERED_MS = 20000; // after which an act may be sent again; the server takes each once
const LOOK_MS = 250; // nobody judges in less: such a key was meant for the sheet before
const TYPING_MS = 300; // after the last letter of a reason it is sent
const NOTICE_MS = 4000; // good news goes away by itself
const UNDER_WAY_MS = 5000; // a change that is younger may not have reached the server

// One for all mounts: the sheet comes back as it was when another tab had taken its place.
const held = { paper: null, work: null, number: 0, notice: null, locked: null, shown: 0, place: 0, changed: null };
const views = new WeakMap();

export default function mount({ data, parentElement, setStateValue }) {
  if (!views.has(parentElement)) views.set(parentElement, new Sheet(parentElement));
  const sheet = views.get(parentElement);
  sheet.send = (work) => setStateValue("work", work);
  sheet.show(data);
  return () => sheet.leave();
}

function make(tag, properties = {}, ...children) {
  const { dataset, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, dataset);
  made.append(...children.filter((child) => child !== null));
  return made;
}

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

const TEXT_FIELDS = "textarea, select, [contenteditable=''], [contenteditable=true], input:not([type=checkbox])" +
  ":not([type=radio]):not([type=button]):not([type=submit])";
const ARROW_USERS = "[role=radiogroup], [role=tablist], [role=slider], [role=listbox], [role=menu], input[type=radio]";

class Sheet {
  constructor(parent) {
    this.root = make("div", { className: "sheet", tabIndex: -1 });
    parent.append(this.root);
    this.onKey = (event) => this.key(event);
    this.onPointer = () => (this.byPointer = true);
    this.onHide = () => document.visibilityState === "hidden" && this.leavePage();
    this.onLeave = () => this.leavePage();
    this.onFocus = (event) => this.enter(event.target);
    this.root.addEventListener("focusin", this.onFocus);
    this.byPointer = true;
  }

  show(data) {
    document.addEventListener("keydown", this.onKey, true);
    document.addEventListener("pointerdown", this.onPointer, true);
    document.addEventListener("visibilitychange", this.onHide);
    window.addEventListener("pagehide", this.onLeave);
    const { notice, ...look } = data;
    const fresh = data.paper !== held.paper;
    if (fresh) {
      this.unlock();
      Object.assign(held, { paper: data.paper, work: structuredClone(data.work), shown: performance.now() });
      Object.assign(held, { place: 0, changed: null });
    }
    this.data = data;
    if (fresh || JSON.stringify(look) !== this.look) {
      this.look = JSON.stringify(look);
      this.draw(fresh);
    }
    if (notice && notice.id !== held.notice) {
      held.notice = notice.id;
      if (held.locked !== null && notice.number >= held.locked) this.unlock();
      this.say(notice.kind, notice.text);
    }
    this.paint();
  }

  leave() {
    this.flush();
    document.removeEventListener("keydown", this.onKey, true);
    document.removeEventListener("pointerdown", this.onPointer, true);
    document.removeEventListener("visibilitychange", this.onHide);
    window.removeEventListener("pagehide", this.onLeave);
  }

  // What is sent

  post(act) {
    this.send(this.state(act));
    return held.number;
  }

  /** The whole state, with the next number; nothing waits to be sent any more. */
  state(act) {
    clearTimeout(this.typing);
    this.typing = null;
    held.number += 1;
    return { paper: held.paper, number: held.number, act, ...held.work };
  }

  change() {
    this.hush();
    held.changed = performance.now();
    this.post(null);
    this.paint();
  }

  flush() {
    if (this.typing) this.post(null);
  }

  /** Send what is on the sheet while the page goes: its connection ends before another message is out. */
  leavePage() {
    const young = held.changed !== null && performance.now() - held.changed < UNDER_WAY_MS;
    if (!(this.typing || young) || held.locked !== null) return;
    const state = JSON.stringify(this.state(null));
    if (!navigator.sendBeacon(new URL(this.data.leaving, document.baseURI), state)) this.send(JSON.parse(state));
  }

  act(name) {
    if (held.locked !== null) return;
    const action = [...this.data.choices, ...this.data.buttons].find((one) => one.act === name);
    if (!action || (action.looks && performance.now() - held.shown < LOOK_MS)) return;
    if (name === "save" && !this.complete()) return;
    this.hush();
    held.locked = this.post(name);
    this.waiting = setTimeout(() => this.say("info", this.data.words.writing, true), WAITING_MS);
    this.unanswered = setTimeout(() => {
      this.unlock();
      this.say("warning", this.data.words.unanswered, true);
      this.paint();
    }, UNANSWERED_MS);
    this.paint();
  }

  unlock() {
    clearTimeout(this.waiting);
    clearTimeout(this.unanswered);
    if (held.locked !== null) this.hush();
    held.locked = null;
  }

  /** Whether a ranking may be saved; if not, it says why. */
  complete() {
    const { ranks, ties } = held.work;
    const { words } = this.data;
    const clash = holders(ranks).findIndex((holder) => holder !== null);
    this.asked = true;
    this.paint();
    if (ranks.includes(null)) {
      this.say("error", words.incomplete);
    } else if (clash >= 0 && !ties) {
      this.say("error", fill(words.conflict, { rank: ranks[clash], holder: letter(ranks.indexOf(ranks[clash])) }));
    } else {
      return true;
    }
    return false;
  }

  nameNext(place) {
    const { ranks } = held.work;
    held.place = place;
    ranks[place] = ranks[place] === null ? nextRank(ranks) : null;
    this.change();
  }

  // Keys

  key(event) {
    if (event.key === "Tab") this.byPointer = false;
    if (event.isComposing || !this.root.checkVisibility()) return;
    const target = event.composedPath()[0];
    const typing = target instanceof Element && target.matches(TEXT_FIELDS);
    const own = this.root.contains(target);
    // A field or a dialog of another part of the page keeps its keys.
    if (!own && (typing || target.closest?.("[role=dialog], [data-testid=stPopoverBody]"))) return;
    const name = keyName(event);
    if (typing && name !== "Ctrl+Enter") {
      if (name === "Escape") target.blur();
      return;
    }
    // Whoever came to a switch by the Tab key moves in it by arrows; after a click on it they are the sheet's again.
    if (name.startsWith("Arrow") && !this.byPointer && target.closest?.(ARROW_USERS)) return;
    if (this.press(name, event.repeat)) {
      event.preventDefault();
      event.stopPropagation();
    }
  }

  /** Do what a key stands for; whether it stands for anything. A key that is held down counts once. */
  press(name, again) {
    const digit = /^[1-9]$/.test(name) && this.data.kind === "rank" && Number(name) <= this.data.answers.length;
    const action = [...this.data.choices, ...this.data.buttons].find((one) => one.key === name);
    const field = this.fields[name];
    const refused = this.data.refused[name];
    if (!digit && !action && !field && !refused) return false;
    if (again || held.locked !== null) return true;
    if (digit) this.nameNext(Number(name) - 1);
    else if (action) this.act(action.act);
    else if (field) field();
    else this.say("info", refused);
    return true;
  }

  /** Go to the quality or the flags of the answer that was touched last; from there, to those of the next. */
  reach(row) {
    const focused = this.root.getRootNode().activeElement;
    if (this.cards[held.place][row].includes(focused)) held.place = (held.place + 1) % this.cards.length;
    this.byPointer = false;
    this.cards[held.place][row].find((one) => one.tabIndex === 0).focus();
  }

  /** Remember the answer that somebody is at. */
  enter(target) {
    const place = this.cards.findIndex((card) => card.box.contains(target));
    if (place >= 0) held.place = place;
  }

  // What is seen

  say(kind, text, brief = false) {
    clearTimeout(this.fading);
    if (!this.status) return;
    this.status.className = `status ${kind}`;
    this.status.textContent = text;
    if (!brief && (kind === "success" || kind === "info")) this.fading = setTimeout(() => this.hush(), NOTICE_MS);
  }

  hush() {
    this.asked = false;
    this.say("none", "");
  }

  draw(fresh) {
    const { data } = this;
    const focused = this.root.getRootNode().activeElement;
    const kept = this.status;
    this.status = make("p", { className: kept?.className ?? "status", textContent: kept?.textContent ?? "" });
    this.status.setAttribute("role", "status");
    this.cards = data.answers.map((answer, place) => this.card(answer, place));
    this.fields = {};
    if (data.kind === "rank") Object.assign(this.fields, { q: () => this.reach("overall"), f: () => this.reach("marks") });
    this.body = make(
      "div",
      { className: "body" },
      data.question ? make("h2", { className: "question", textContent: data.question }) : null,
      data.prompt ? promptBox(data.prompt, data.words) : null,
      data.message ? make("p", { className: "message", textContent: data.message }) : null,
      make("div", { className: "answers" }, ...this.cards.map((card) => card.box)),
      data.work.reason === undefined ? null : this.reason(),
    );
    this.root.replaceChildren(this.body, this.bar());
    // Whoever works by keys begins at the sheet, not at the top of the page.
    const nowhere = document.activeElement === null || document.activeElement === document.body;
    if (nowhere || (focused && focused !== this.root && !focused.isConnected)) this.root.focus({ preventScroll: true });
    if (fresh && this.root.getBoundingClientRect().top < 0) this.root.scrollIntoView();
  }

  card(answer, place) {
    if (this.data.kind !== "rank") {
      const shown = answer.picture
        ? make("img", { src: answer.picture, alt: answer.name })
        : longText(answer.text, this.data.words);
      return { box: make("section", { className: "card" }, make("header", {}, heading(answer.name)), shown) };
    }
    const { words, flags, highest } = this.data;
    const next = make("button", { type: "button", className: "next", onclick: () => this.nameNext(place) });
    const scale = (name, count) =>
      Array.from({ length: count }, (_, index) => this.toggle(String(index + 1), () => this.mark(name, place, index + 1)));
    const ranks = scale("ranks", this.data.answers.length);
    const overall = scale("overall", highest);
    const marks = flags.map(([flag, word]) => this.toggle(word, () => this.flag(place, flag)));
    [ranks, overall, marks].forEach(rove);
    const clash = make("p", { className: "clash" });
    const box = make(
      "section",
      { className: "card", ariaLabel: answer.name },
      make("header", {}, heading(answer.name), next),
      longText(answer.text, words),
      row("rank", words.rank_word, "segments", ranks),
      clash,
      row("overall", words.overall_word, "segments", overall),
      row("flags", words.flags, "chips", marks),
    );
    return { box, next, ranks, overall, marks, clash };
  }

  toggle(text, onclick) {
    return make("button", { type: "button", textContent: text, onclick });
  }

  mark(name, place, value) {
    held.work[name][place] = held.work[name][place] === value ? null : value;
    this.change();
  }

  flag(place, flag) {
    const before = held.work.flags[place];
    held.work.flags[place] = before.includes(flag) ? before.filter((one) => one !== flag) : [...before, flag];
    this.change();
  }

  reason() {
    const { words, longest_reason: maxLength } = this.data;
    const field = make("textarea", { value: held.work.reason, rows: 2, maxLength });
    field.oninput = () => {
      held.work.reason = field.value;
      held.changed = performance.now();
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.post(null), TYPING_MS);
    };
    field.onblur = () => this.flush();
    this.fields.r = () => field.focus();
    const key = make("kbd", { textContent: "R", ariaHidden: "true" });
    return make("label", { className: "reason" }, make("span", { textContent: words.reason }), key, field);
  }

  bar() {
    const { data } = this;
    const order = make("p", { className: "order" });
    if (data.kind === "rank") {
      this.order = make("output");
      this.ties = make("input", { type: "checkbox" });
      this.ties.setAttribute("role", "switch");
      this.ties.onchange = () => {
        held.work.ties = this.ties.checked;
        this.change();
      };
      order.append(
        make("span", { textContent: data.words.order }),
        this.order,
        make("label", { className: "ties" }, this.ties, data.words.ties),
      );
    }
    const group = (name, actions) =>
      actions.length ? make("div", { className: name }, ...actions.map((one) => this.button(one))) : null;
    return make(
      "footer",
      {},
      make("div", { className: "said" }, data.kind === "rank" ? order : null, this.status),
      group("choices", data.choices),
      group("buttons", data.buttons),
    );
  }

  button({ act, label, sign, primary, first }) {
    const key = make("kbd", { textContent: sign, className: first ? "first" : "", ariaHidden: "true" });
    const made = make("button", { type: "button", className: primary ? "primary" : "", dataset: { act } });
    made.append(...(first ? [key, label] : [label, key]));
    made.onclick = () => this.act(act);
    return made;
  }

  /** Bring what is seen in line with what is held. */
  paint() {
    const locked = held.locked !== null;
    this.root.className = `sheet ${this.data.kind}${locked ? " locked" : ""}`;
    this.root.ariaBusy = String(locked);
    this.root.querySelectorAll("button, textarea, input").forEach((one) => (one.disabled = locked));
    if (this.data.kind !== "rank") return;
    const { ranks, overall, flags, ties } = held.work;
    const { words } = this.data;
    const taken = holders(ranks);
    this.cards.forEach((card, place) => {
      const rank = ranks[place];
      const holder = taken[place];
      card.box.classList.toggle("ranked", rank !== null);
      card.box.classList.toggle("missing", Boolean(this.asked) && rank === null);
      card.box.classList.toggle("clashes", holder !== null && !ties);
      const key = make("kbd", { textContent: String(place + 1), ariaHidden: "true" });
      card.next.replaceChildren(rank === null ? words.next_best : fill(words.ranked, { rank }), key);
      card.next.ariaPressed = String(rank !== null);
      card.ranks.forEach((one, index) => (one.ariaPressed = String(rank === index + 1)));
      card.overall.forEach((one, index) => (one.ariaPressed = String(overall[place] === index + 1)));
      card.marks.forEach((one, index) => (one.ariaPressed = String(flags[place].includes(this.data.flags[index][0]))));
      const said = holder === null ? "" : ties ? words.tie : words.conflict;
      card.clash.textContent = fill(said, { rank, holder: letter(holder ?? 0) });
      card.clash.hidden = holder === null;
    });
    this.ties.checked = ties;
    this.order.textContent = orderLine(ranks);
    const equal = !ranks.includes(null) && ranks.every((rank) => rank === ranks[0]);
    if (equal && !this.status.textContent) this.say("warning", words.all_tied);
  }
}

/** A key as buttons name it; digits and letters by their place where the layout or an input method hides them. */
function keyName(event) {
  const { key, code, ctrlKey, metaKey, altKey, shiftKey } = event;
  if (key === "Enter" && (ctrlKey || metaKey) && !altKey && !shiftKey) return "Ctrl+Enter";
  if (ctrlKey || metaKey || altKey) return "";
  const digit = /^Digit([1-9])$/.exec(code);
  if (digit && !shiftKey) return digit[1];
  if (/^[\x21-\x7e]$/.test(key)) return key.toLowerCase();
  const placed = /^Key([A-Z])$/.exec(code);
  return placed ? placed[1].toLowerCase() : key;
}

const heading = (name) => make("h3", { textContent: name });

const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => target.onscroll()));

/** A text in a box that scrolls where it is long: it then says that more follows, and can be shown whole. */
function longText(text, words) {
  const box = make("div", { className: "text", dir: "auto", textContent: text });
  const more = make("button", { type: "button", className: "more" });
  const frame = make("div", { className: "reading" }, box, more);
  more.onclick = () => {
    frame.classList.toggle("whole");
    box.onscroll();
    if (!frame.classList.contains("whole")) frame.scrollIntoView({ block: "nearest" });
  };
  box.onscroll = () => {
    const whole = frame.classList.contains("whole");
    const left = box.scrollHeight - box.clientHeight;
    frame.classList.toggle("long", whole || left > 1);
    frame.classList.toggle("follows", left - box.scrollTop > 1);
    more.textContent = whole ? words.show_less : words.show_all;
    more.ariaExpanded = String(whole);
  };
  box.onscroll();
  resized.observe(box);
  return frame;
}

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/** Make a row of buttons one stop of the Tab key, in which arrows go on. */
function rove(buttons) {
  const stop = (chosen) => buttons.forEach((one) => (one.tabIndex = one === chosen ? 0 : -1));
  buttons.forEach((one, index) => {
    one.onfocus = () => stop(one);
    one.onkeydown = (event) => {
      const step = keyName(event) === event.key ? STEPS[event.key] : undefined;
      if (step === undefined) return;
      event.preventDefault();
      buttons[(index + step + buttons.length) % buttons.length].focus();
    };
  });
  stop(buttons[0]);
}

function row(name, word, kind, buttons) {
  const group = make("div", { className: kind, ariaLabel: word }, ...buttons);
  group.setAttribute("role", "group");
  // Too many for one line of a phone: two lines of about one length.
  group.style.setProperty("--columns", buttons.length > 7 ? Math.ceil(buttons.length / 2) : buttons.length);
  return make("div", { className: `row ${name}` }, make("span", { textContent: word }), group);
}

function promptBox({ title, turns }, words) {
  const shown = turns.flatMap(({ role, text }) => [
    role ? make("span", { className: "role", textContent: role }) : null,
    longText(text, words),
  ]);
  return make("section", { className: "prompt" }, make("h2", { textContent: title }), ...shown);
}
