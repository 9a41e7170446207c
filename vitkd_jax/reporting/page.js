"use strict";
// Without this script the page shows the same, unsorted and without hovering.

const collator = new Intl.Collator("en", { numeric: true });

// A cell's number: "+6.00 (2.77)", "1,250 of 2,000", "0:35", "12.5%".
const number = (text) => {
  if (/^\d+(:\d\d)+$/.test(text)) {
    return text.split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
  }
  const plain = text.replace(/,(?=\d{3}(\D|$))/g, "").replace("−", "-");
  const found = plain.match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : NaN;
};

const sort = (body, column, isText, sign) => {
  const text = (row) => row.cells[column].textContent.trim();
  const compare = (a, b) => {
    if (isText) return sign * collator.compare(text(a), text(b));
    const [x, y] = [number(text(a)), number(text(b))];
    // What has no number is last in either order.
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
    return sign * (x - y);
  };
  body.append(...[...body.rows].sort(compare));
};

for (const table of document.querySelectorAll("table")) {
  const [body] = table.tBodies;
  if (body.rows.length < 2) continue;
  const heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    const isText = column === 0 || head.classList.contains("text");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const last = head.getAttribute("aria-sort");
      // The highest number and the first name are what one looks for.
      const up = last ? last === "descending" : isText;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(body, column, isText, up ? 1 : -1);
    });
  }
}

// Values of a figure's points: the pointer shows the nearest one, and with the
// figure in focus the arrow keys go along a curve and from curve to curve.
const tip = document.createElement("div");
tip.id = "tip";
tip.setAttribute("role", "status");
document.body.append(tip);
const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
dot.setAttribute("r", 3.5);
dot.setAttribute("class", "dot");

const hide = () => {
  tip.classList.remove("shown");
  dot.remove();
};

const line = (text, color) => {
  const made = document.createElement("div");
  made.textContent = text;
  if (color) made.style.color = color;
  return made;
};

const show = (svg, point) => {
  const { series, index, x, y } = point;
  dot.setAttribute("cx", x);
  dot.setAttribute("cy", y);
  dot.style.fill = series.color;
  svg.append(dot);
  tip.replaceChildren(line(`${series.name}: ${series.y[index]}`, series.color));
  if (series.along) tip.append(line(`${series.along} ${series.x[index]}`));
  tip.classList.add("shown");
  const at = dot.getBoundingClientRect();
  const most = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const left = at.left + at.width / 2 - tip.offsetWidth / 2;
  const above = at.top - tip.offsetHeight - 8;
  tip.style.left = `${scrollX + Math.max(8, Math.min(left, most))}px`;
  tip.style.top = `${scrollY + (above < 8 ? at.bottom + 8 : above)}px`;
};

// The points of each curve, in the coordinates of the SVG; a narrow picture
// shows fewer images than a wide one.
const placed = (panels, boxes) =>
  panels.slice(0, boxes.length).flatMap((curves, panel) => {
    const [left, top, width, height] = boxes[panel];
    return curves.map((series) =>
      series.at.map(([across, up], index) => ({
        series,
        index,
        panel,
        x: left + width * across,
        y: top + height * (1 - up),
      })),
    );
  });

const listen = (svg, panels) => {
  const boxes = JSON.parse(svg.dataset.boxes);
  const curves = placed(panels, boxes);
  const all = curves.flat();
  let [curve, index] = [0, null];

  const nearest = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(
      svg.getScreenCTM().inverse(),
    );
    const inside = boxes.findIndex(
      ([left, top, width, height]) =>
        at.x > left - 12 &&
        at.x < left + width + 12 &&
        at.y > top - 12 &&
        at.y < top + height + 12,
    );
    let [found, least] = [null, Infinity];
    for (const point of all) {
      if (point.panel !== inside) continue;
      const far = Math.hypot(point.x - at.x, point.y - at.y);
      if (far < least) [found, least] = [point, far];
    }
    if (found) show(svg, found);
    else hide();
  };
  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);

  const go = (along, across) => {
    curve = (curve + across + curves.length) % curves.length;
    const last = curves[curve].length - 1;
    index = Math.max(0, Math.min((index ?? last) + along, last));
    show(svg, curves[curve][index]);
  };
  const keys = {
    ArrowRight: [1, 0],
    ArrowLeft: [-1, 0],
    ArrowDown: [0, 1],
    ArrowUp: [0, -1],
  };
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const steps = keys[event.key];
    if (!steps) return;
    event.preventDefault();
    go(...steps);
  });
  svg.addEventListener("focus", () => {
    if (svg.matches(":focus-visible")) go(0, 0);
  });
};

for (const data of document.querySelectorAll("script.values")) {
  const panels = JSON.parse(data.textContent);
  for (const svg of data.parentElement.querySelectorAll("svg")) {
    svg.setAttribute("tabindex", "0");
    listen(svg, panels);
  }
}
