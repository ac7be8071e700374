// Whoever opens the page may type their name at once.

export default function mount() {
  document.querySelector("[data-testid=stForm] input")?.focus();
}
