"use strict";

// ---- Numbers, without the page

// Bytes of a zlib stream in base64.
async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Levels of a map from the differences of neighbors in a row, modulo 256.
function addDifferences(differences, width) {
  const levels = new Uint8Array(differences.length);
  for (let i = 0; i < levels.length; i++) levels[i] = differences[i] + (i % width ? levels[i - 1] : 0);
  return levels;
}

// Mask with one byte per pixel, 0 or 1, from 8 pixels per byte, the first in the highest bit.
function unpackBits(bytes, count) {
  return Uint8Array.from({ length: count }, (_, i) => (bytes[i >> 3] >> (7 - (i & 7))) & 1);
}

// Pixels whose value exceeds threshold number k: true and false positives, false negatives.
function countPixels(levels, mask, k) {
  let [tp, fp, fn] = [0, 0, 0];
  for (let i = 0; i < levels.length; i++) {
    const above = levels[i] > k;
    if (mask[i]) above ? tp++ : fn++;
    else if (above) fp++;
  }
  return { tp, fp, fn };
}

// Precision and recall; null if undefined.
function precisionRecall({ tp, fp, fn }) {
  return { precision: tp + fp ? tp / (tp + fp) : null, recall: tp + fn ? tp / (tp + fn) : null };
}

// Name of the decision for an image; "" without a threshold.
function outcome(item, threshold) {
  if (threshold === null || threshold === undefined) return "";
  const above = item.score > threshold;
  if (item.anomalous) return above ? "true positive" : "false negative";
  return above ? "false positive" : "true negative";
}

// Cases that a filter selects, by decreasing or increasing score.
function selectCases(cases, filter, order, threshold) {
  const matches = (item) => filter === "all" || (filter === "defect" && item.anomalous) ||
    (filter === "good" && !item.anomalous) || outcome(item, threshold) === filter;
  const sign = order === "lowest" ? 1 : -1;
  return cases.filter(matches).sort((a, b) => sign * (a.score - b.score) || (a.file < b.file ? -1 : 1));
}

// A file name may have bytes that are no text; a link has a replacement character for each.
const wellFormed = (text) => text.replace(/[\uD800-\uDFFF]/gu, "\uFFFD");
const caseHash = (...names) => `#case=${names.map((name) => encodeURIComponent(wellFormed(name))).join("/")}`;

// Gallery, method and file of a link to a case; null for other links.
function parseHash(hash) {
  if (!hash.startsWith("#case=")) return null;
  try {
    const [gallery, method, file] = hash.slice(6).split("/").map(decodeURIComponent);
    return file === undefined ? null : { gallery, method, file };
  } catch {  // not a valid encoding
    return null;
  }
}

const formatNumber = (value) => (value === null ? "–" : Number(value.toPrecision(4)).toString());
const formatPercent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);

// Color map inferno, interpolated between nine of its colors.
const INFERNO = [
  [0, 0, 3], [32, 12, 74], [87, 15, 109], [137, 34, 105], [187, 55, 84], [228, 90, 49], [249, 142, 8], [248, 203, 52],
  [252, 254, 164],
];
function inferno(level) {
  const position = (level / 255) * (INFERNO.length - 1);
  const index = Math.min(Math.floor(position), INFERNO.length - 2);
  return INFERNO[index].map((value, i) => value + (position - index) * (INFERNO[index + 1][i] - value));
}

const COLORS = { tp: [0, 200, 90, 200], fp: [255, 140, 0, 200], fn: [40, 110, 255, 200], above: [255, 255, 255, 190] };

// ---- Page

function element(name, properties = {}, ...children) {
  const created = Object.assign(document.createElement(name), properties);
  created.append(...children);
  return created;
}

// Data of a gallery; decoded maps and masks are not kept, since a category may have many.
class GalleryData {
  constructor(name) {
    this.name = name;
    Object.assign(this, JSON.parse(document.getElementById(`data-${name}`).textContent));
    for (const method of this.methods) method.cases.forEach((item) => { item.method = method; });
  }

  async levels(item) {
    return item.levels === null ? null : addDifferences(await inflate(item.levels), item.method.width);
  }

  async mask(item) {
    const count = item.method.width * item.method.height;
    return item.mask === null ? null : unpackBits(await inflate(this.masks[item.mask]), count);
  }

  imageSource(item) {
    return item.image === undefined ? "" : this.images[item.image];
  }

  async picture(item) {
    const source = this.imageSource(item);
    if (!source) return null;
    const picture = element("img", { src: source });
    await picture.decode();
    return picture;
  }

  find(method, file) {
    const members = this.methods.find((each) => wellFormed(each.name) === method) ?? this.methods[0];
    return members.cases.find((item) => wellFormed(item.file) === file);
  }
}

// Canvas with one color per pixel: color(i) returns red, green, blue and opacity, or null.
function pixelCanvas(width, height, color) {
  const canvas = element("canvas", { width, height });
  const data = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const value = color(i);
    if (value) data.data.set(value, 4 * i);
  }
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

const heatCanvas = (levels, { width, height }) => pixelCanvas(width, height, (i) => [...inferno(levels[i]), 255]);

// Draw layers of [picture or canvas, opacity] over gray.
function draw(canvas, layers) {
  const context = canvas.getContext("2d");
  context.globalAlpha = 1;
  context.fillStyle = "#808080";
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (const [layer, opacity] of layers) {
    if (!layer) continue;
    context.globalAlpha = opacity;
    context.drawImage(layer, 0, 0, canvas.width, canvas.height);
  }
}

// Colors of the pixels above threshold k, and of missed defect pixels.
function segmentation(levels, mask, k, { width, height }) {
  return pixelCanvas(width, height, (i) => {
    const above = levels[i] > k;
    if (!mask) return above ? COLORS.above : null;
    return mask[i] ? COLORS[above ? "tp" : "fn"] : above ? COLORS.fp : null;
  });
}

const galleries = new Map();
function gallery(name) {
  if (!galleries.has(name)) galleries.set(name, new GalleryData(name));
  return galleries.get(name);
}
