// A picture that a visitor drops or chooses, with `props.count` tokens over it. The pointer marks those to keep, unless
// `props.line`: then a slider beside it says how many rows are kept.
const editor = element.querySelector(".mask-editor"), image = editor.querySelector("img"), cells = editor.querySelector(".cells");
const drop = element.querySelector(".drop"), chooser = drop.querySelector("input"), words = drop.querySelector("span");

function draw() {
  const value = props.value || {};
  editor.hidden = !value.src;
  if (value.src) image.src = value.src;
  cells.classList.toggle("line", props.line);
  const keep = value.keep || "";
  cells.replaceChildren(...Array.from({ length: props.count || 0 }, (_, i) => {
    const cell = document.createElement("i");
    cell.className = keep[i] === "1" ? "kept" : "";
    return cell;
  }));
}

function give(file) {
  if (!file) return;
  if (file.size > props.most) {
    words.textContent = `${file.name} has ${Math.ceil(file.size / 2 ** 20)} MiB: give one of at most ${props.most / 2 ** 20}`;
    return;
  }
  const reader = new FileReader();
  reader.onload = () => trigger("give", { url: reader.result });
  reader.readAsDataURL(file);
}

chooser.addEventListener("change", () => { give(chooser.files[0]); chooser.value = ""; });
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => { event.preventDefault(); give(event.dataTransfer.files[0]); });

// The first cell that is touched says whether the stroke marks or clears.
let marks = null;
function mark(event) {
  const cell = document.elementFromPoint(event.clientX, event.clientY);
  if (cell && cell.parentNode === cells) cell.className = marks ? "kept" : "";
}
cells.addEventListener("pointerdown", (event) => {
  if (props.line) return;
  event.preventDefault();
  marks = event.target.className !== "kept";
  mark(event);
});
cells.addEventListener("pointermove", (event) => { if (marks !== null) mark(event); });
window.addEventListener("pointerup", () => {
  if (marks === null) return;
  marks = null;
  props.value = { ...props.value, keep: [...cells.children].map((cell) => (cell.className ? "1" : "0")).join("") };
});

watch("value", draw);
draw();
