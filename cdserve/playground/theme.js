// The theme, before the page is drawn: the system's, or the one chosen here before.
// Not a module, which would run after.

(() => {
  const KEY = "cdserve-theme";
  const chosen = localStorage.getItem(KEY) ?? "";
  document.documentElement.style.colorScheme = chosen;
  addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    select.value = chosen;
    select.addEventListener("change", () => {
      document.documentElement.style.colorScheme = select.value;
      localStorage.setItem(KEY, select.value);
    });
  });
})();
