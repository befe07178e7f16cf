// ---- Thumbnails of a gallery

const FILTERS = {
  all: "all images", defect: "defects", good: "good images", "false positive": "false positives",
  "false negative": "false negatives",
};
const ORDERS = { highest: "highest score first", lowest: "lowest score first" };

function choice(name, values, onChange) {
  const select = element("select", { className: name });
  for (const [value, text] of Object.entries(values)) select.append(element("option", { value, textContent: text }));
  select.addEventListener("change", onChange);
  return select;
}

const mapObserver = typeof IntersectionObserver === "undefined" ? null : new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) {
    mapObserver.unobserve(target);
    drawMapThumbnail(target);
  }
});
async function drawMapThumbnail(canvas) {
  const { data, item } = canvas.source;
  const levels = await data.levels(item);
  if (levels) draw(canvas, [[heatCanvas(levels, item.method), 1]]);
}

function thumbnail(data, item) {
  const source = data.imageSource(item);
  const button = element("button", { type: "button", className: "case" });
  if (source) button.append(element("img", { loading: "lazy", decoding: "async", src: source, alt: "" }));
  else if (item.levels !== null) {
    const canvas = element("canvas", { width: item.method.width, height: item.method.height });
    canvas.source = { data, item };
    mapObserver?.observe(canvas);
    button.append(canvas);
  } else button.append(element("span", { className: "no-image", textContent: "no image" }));
  const result = outcome(item, item.method.scoreThreshold);
  button.append(element("span", { className: "score", textContent: formatNumber(item.score) }),
    element("span", { className: "defect", textContent: item.defect }));
  if (result.startsWith("false")) button.append(element("span", { className: "chip bad", textContent: result }));
  button.title = item.file;
  button.item = item;
  return button;
}

function thresholdText({ scoreThreshold, scoreThresholdOrigin, problem }) {
  if (problem) return problem;
  if (scoreThreshold === null) return "There is no threshold of the scores: it needs good and defective test images.";
  return `Score threshold ${formatNumber(scoreThreshold)}: ${scoreThresholdOrigin}.`;
}

function fillGallery(block) {
  if (block.shown) return block.shown;
  const data = gallery(block.dataset.gallery);
  const names = Object.fromEntries(data.methods.map((method, index) => [index, method.name]));
  const show = () => {
    const method = data.methods[controls.method.value];
    const cases = selectCases(method.cases, controls.filter.value, controls.order.value, method.scoreThreshold);
    block.shown.cases = cases;
    grid.replaceChildren(...cases.map((item) => thumbnail(data, item)));
    count.textContent = `${cases.length} of ${method.cases.length}`;
    const missing = method.cases.filter((item) => item.image === undefined);
    const reasons = [...new Set(missing.map((item) => data.reasons[item.reason]))];
    note.textContent = thresholdText(method) + (missing.length
      ? ` ${missing.length} images are missing and their maps are shown instead: ${reasons.join("; ")}.` : "");
  };
  const controls = {
    method: choice("method-choice", names, show), filter: choice("case-filter", FILTERS, show),
    order: choice("order-choice", ORDERS, show),
  };
  const count = element("span", { className: "count" });
  const note = element("p", { className: "quiet" });
  const grid = element("div", { className: "cases" });
  block.shown = { data, controls, show, cases: [] };
  const labels = [["Method", controls.method], ["Show", controls.filter], ["Order", controls.order]];
  block.querySelector(".viewer").append(
    element("div", { className: "filters" }, ...labels.map(([text, control]) => element("label", {}, `${text} `, control)),
      count), note, grid);
  show();
  return block.shown;
}

// ---- One case

const shownCase = { block: null, item: null, levels: null, mask: null, picture: null, heat: null };
const byId = (id) => document.getElementById(id);

async function openCase(block, item) {
  const { data } = fillGallery(block);
  const { method } = item;
  Object.assign(shownCase, { block, item, data, levels: null, heat: null, mask: null, picture: null });
  const [levels, mask, picture] = await Promise.all([data.levels(item), data.mask(item), data.picture(item)]);
  if (shownCase.item !== item) return;  // another case was opened in the meantime
  Object.assign(shownCase, { levels, mask, picture, heat: levels && heatCanvas(levels, method) });
  const rank = 1 + method.cases.filter((other) => other.score > item.score).length;
  byId("case-title").textContent = item.file;
  const facts = [method.name, item.defect, `score ${formatNumber(item.score)}`, `rank ${rank} of ${method.cases.length}`,
    outcome(item, method.scoreThreshold), `seed ${method.seed}`];
  byId("case-facts").textContent = facts.filter(Boolean).join(" · ");
  byId("case-note").textContent = [
    item.image === undefined ? `The image is missing: ${data.reasons[item.reason]}.` : "",
    mask ? "" : "The defect pixels of this image are not labeled, so true and false positives are unknown.",
    levels ? "" : "The map is not stored.", thresholdText(method),
    data.block > 1 ? `The report has many maps, so a block of ${data.block} x ${data.block} pixels is counted as one: ` +
      "it has the highest value of its pixels, and is a defect if one of them is." : "",
  ].filter(Boolean).join(" ");
  for (const canvas of document.querySelectorAll("#case canvas")) {
    Object.assign(canvas, { width: method.width, height: method.height });
  }
  const slider = byId("pixel-threshold");
  if (slider.method !== method) {
    slider.method = method;
    slider.value = method.calibratedLevel ?? 128;
  }
  const link = caseHash(data.name, method.name, item.file);
  byId("case-link").href = link;
  if (location.hash !== link) history.replaceState(null, "", link);
  drawCase();
  if (!byId("case").open) byId("case").showModal();
}

function drawCase() {
  const { item, levels, mask, picture, heat } = shownCase;
  if (!item) return;
  const { method } = item;
  const size = { width: method.width, height: method.height };
  const k = Number(byId("pixel-threshold").value);
  const truth = mask && pixelCanvas(size.width, size.height, (i) => (mask[i] ? [255, 255, 255, 255] : [0, 0, 0, 255]));
  draw(byId("case-image"), [[picture, 1]]);
  draw(byId("case-mask"), [[truth, 1]]);
  draw(byId("case-map"), [[picture, 1], [heat, byId("map-opacity").value / 100]]);
  draw(byId("case-segmentation"), [[picture, 1], [levels && segmentation(levels, mask, k, size), 1]]);
  byId("case-counts").textContent = countsText(method, levels, mask, k);
}

function countsText(method, levels, mask, k) {
  if (!levels) return "";
  const calibrated = k === method.calibratedLevel ? " (calibrated)" : "";
  const start = `Pixel threshold ${formatNumber(method.thresholds[k])}${calibrated}`;
  if (!mask) return `${start}: ${levels.filter((level) => level > k).length} pixels above.`;
  const counts = countPixels(levels, mask, k);
  const { precision, recall } = precisionRecall(counts);
  return `${start}: TP ${counts.tp}, FP ${counts.fp}, FN ${counts.fn}, precision ${formatPercent(precision)}, ` +
    `recall ${formatPercent(recall)}`;
}

function step(offset) {
  const { cases } = shownCase.block.shown;
  const next = cases[cases.indexOf(shownCase.item) + offset];
  if (next) openCase(shownCase.block, next);
}

// ---- Links and events

function openFromHash() {
  const target = parseHash(location.hash);
  if (!target) return;
  const block = [...document.querySelectorAll("[data-gallery]")].find((each) => each.dataset.gallery === target.gallery);
  if (!block) return;
  if (block.dataset.page) {
    location.href = block.dataset.page + location.hash;
    return;
  }
  const { data, controls, show } = fillGallery(block);
  const item = data.find(target.method, target.file);
  for (let parent = block; parent; parent = parent.parentElement) if (parent.tagName === "DETAILS") parent.open = true;
  if (!item) return;
  controls.method.value = String(data.methods.indexOf(item.method));
  controls.filter.value = "all";  // the image may be none of the selected ones
  show();
  openCase(block, item);
}

document.addEventListener("toggle", (event) => {
  const { target } = event;
  if (target.matches?.("details[data-gallery]:not([data-page])") && target.open) fillGallery(target);
}, true);
document.addEventListener("click", (event) => {
  const button = event.target.closest(".case");
  if (button) openCase(button.closest("[data-gallery]"), button.item);
  else if (event.target.closest("#case .close") || event.target.id === "case") byId("case").close();
  else if (event.target.closest("#case-previous")) step(-1);
  else if (event.target.closest("#case-next")) step(1);
});
document.addEventListener("input", (event) => {
  if (["map-opacity", "pixel-threshold"].includes(event.target.id)) drawCase();
});
document.addEventListener("keydown", (event) => {
  if (!byId("case")?.open || event.target.matches("input, select")) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
byId("case")?.addEventListener("close", () => {
  shownCase.item = null;
  history.replaceState(null, "", location.pathname + location.search);
});
addEventListener("hashchange", openFromHash);
for (const block of document.querySelectorAll("details[data-gallery][open]:not([data-page])")) fillGallery(block);
openFromHash();
