// Strokes of the pointer mark tokens of a picture: "m1" are kept, "m0" are generated. The first one says which.
let to = null;
const mark = (event) => {
  const cell = document.elementFromPoint(event.clientX, event.clientY);
  if (to && element.contains(cell) && cell.matches(".cells i")) cell.className = to;
};
element.addEventListener("pointerdown", (event) => {
  if (!event.target.matches(".cells i")) return;
  event.preventDefault();
  to = event.target.className === "m1" ? "m0" : "m1";
  mark(event);
});
element.addEventListener("pointermove", mark);
window.addEventListener("pointerup", () => {
  const keep = Array.from(element.querySelectorAll(".cells i"), (cell) => cell.className[1]).join("");
  if (to) props.value = { ...props.value, keep };
  to = null;
});
