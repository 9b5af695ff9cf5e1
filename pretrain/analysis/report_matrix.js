// Depth signals: codes to values, values to ratios, ratios to colours.

// Unpacks what pretrain.analysis.compact.pack_matrix compressed; once for all matrices, before anything is drawn.
async function inflate(packed) {
  const bytes = Uint8Array.from(atob(packed.codes), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  packed.planes = new Uint8Array(await new Response(stream).arrayBuffer());
  delete packed.codes;
}

// values[row * columns + column], a row is a sampled step.
function decode({ planes, rows, columns, low, high, levels, scale }) {
  const count = rows * columns,
    codes = new Uint16Array(count), // wraps around as the differences do
    values = new Float64Array(count);
  const first = 2,
    special = new Map([
      [0, NaN],
      [1, 0],
      [65534, -Infinity],
      [65535, Infinity],
    ]);
  for (let i = 0; i < count; i++) {
    const folded = planes[i] | (planes[count + i] << 8);
    codes[i] = (i < columns ? 0 : codes[i - columns]) + ((folded >> 1) ^ -(folded & 1));
    const code = codes[i];
    if (code < first || code > 65533) {
      values[i] = special.get(code);
      continue;
    }
    const share = (code - first) / levels,
      value = low * (1 - share) + high * share;
    values[i] = scale === "log" ? Math.exp(value) : value;
  }
  return values;
}

function median(values) {
  const sorted = values.filter(Number.isFinite).sort();
  return sorted.length ? (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2 : NaN;
}

// A signal's values of one row group in the reader's choice of view; each view is computed when first asked for.
class Matrix {
  constructor(packed, run) {
    Object.assign(this, {
      run,
      packed,
      signal: packed.signal,
      group: packed.group,
      steps: DATA.steps[packed.at],
      sampled: packed.sampled,
      layers: packed.columns,
      heads: null,
    });
    this.views = {};
  }

  values(view = state.view) {
    return (this.views[view] ??=
      view === "value" ? decode(this.packed) : view === "first" ? this.growth() : this.evenness());
  }

  growth() {
    // over the layer's own first sample
    const value = this.values("value");
    return value.map((v, i) => v / value[i % this.layers]);
  }

  evenness() {
    // over the median layer of the same step
    const value = this.values("value");
    const medians = this.steps.map((_, row) => median(value.slice(row * this.layers, (row + 1) * this.layers)));
    return value.map((v, i) => v / medians[Math.floor(i / this.layers)]);
  }

  at(row, layer) {
    return this.values()[row * this.layers + layer];
  }
  profile(row) {
    return this.values().subarray(row * this.layers, (row + 1) * this.layers);
  }
  history(layer) {
    return Float64Array.from(this.steps, (_, row) => this.at(row, layer));
  }

  // Steps from which to which the samples speak: half a gap beyond the first and the last; a single one for the run.
  get reach() {
    const last = this.steps.length - 1;
    if (last === 0) return [this.steps[0] - 0.5, Math.max(this.steps[0], RUNS[this.run].last_step) + 0.5];
    const half = (at) => (this.steps[at + 1] - this.steps[at]) / 2;
    return [this.steps[0] - half(0), this.steps[last] + half(last - 1)];
  }
  reaches(step) {
    return step <= Math.max(this.reach[1], RUNS[this.run].last_step);
  }
}

// The single heads behind a matrix that holds the worst head of each layer; always the values themselves.
class Heads {
  constructor(packed) {
    Object.assign(this, { packed, steps: DATA.steps[packed.at], count: packed.heads, columns: packed.columns });
  }
  get values() {
    return (this.decoded ??= decode(this.packed));
  }
  // Of a layer at the sampled step nearest to `step`.
  of(layer, step) {
    const from = nearest(this.steps, step) * this.columns + layer * this.count;
    return this.values.subarray(from, from + this.count);
  }
  history(layer, head) {
    return Float64Array.from(this.steps, (_, row) => this.values[row * this.columns + layer * this.count + head]);
  }
}

const PACKED = RUNS.flatMap((run) => run.layers);
if (PACKED.length && typeof DecompressionStream === "undefined")
  throw new Error("this browser cannot unpack the depth signals; Chrome 80, Firefox 113, Safari 16.4 or newer can");
await Promise.all(PACKED.map(inflate));
const MATRICES = RUNS.flatMap((run, index) => {
  const matrices = run.layers.filter((packed) => packed.heads === null).map((packed) => new Matrix(packed, index));
  for (const packed of run.layers.filter((other) => other.heads !== null))
    matrices.find((m) => m.signal === packed.signal && m.group === packed.group).heads = new Heads(packed);
  return matrices;
});
const SAMPLED_STEPS = [...new Set(MATRICES.flatMap((matrix) => matrix.steps))].sort((a, b) => a - b);
const DEEPEST = Math.max(1, ...MATRICES.map((matrix) => matrix.layers));
const visible = (matrix) => !state.hiddenRuns.has(matrix.run);

// The colour scale that all maps of a signal share. Logarithmic unless something is negative; ratios lie evenly
// around one. A range of many decades is cut to where nearly all values are, and the legend says so.
class ColorScale {
  constructor(matrices) {
    const all = [];
    let negative = false;
    for (const matrix of matrices) {
      const values = matrix.values(),
        stride = Math.max(1, Math.floor(values.length / 60000));
      for (let i = 0; i < values.length; i += stride) {
        if (Number.isFinite(values[i]) && values[i] !== 0) {
          all.push(values[i]);
          negative ||= values[i] < 0;
        }
      }
    }
    this.log = !negative;
    const sizes = Float64Array.from(all, (v) => (this.log ? Math.log(v) : v)).sort();
    let [low, high] = sizes.length ? [sizes[0], sizes[sizes.length - 1]] : [0, 1];
    this.cut = this.log && high - low > Math.log(1e6);
    if (this.cut) [low, high] = [0.005, 0.995].map((share) => sizes[Math.round(share * (sizes.length - 1))]);
    if (state.view !== "value" && this.log) {
      high = Math.max(Math.abs(low), Math.abs(high), Math.log(1.1));
      low = -high;
    }
    if (high - low < 1e-9) {
      low -= 0.05;
      high += 0.05;
    }
    Object.assign(this, { low, high, table: colorTable(state.view) });
  }

  index(value) {
    const at = this.log ? Math.log(value) : value; // log of zero is -Infinity: the lowest colour
    return Math.max(0, Math.min(255, Math.round(((at - this.low) / (this.high - this.low)) * 255)));
  }
  end(at) {
    return this.log ? Math.exp(at) : at;
  }

  legend(canvas) {
    canvas.width = 256;
    canvas.height = 1;
    const context = canvas.getContext("2d"),
      image = context.createImageData(256, 1);
    for (let i = 0; i < 256; i++) image.data.set([...this.table.subarray(i * 3, i * 3 + 3), 255], i * 4);
    context.putImageData(image, 0, 0);
  }
}

const VIEWS = {
  value: { label: "values", short: "value" },
  first: { label: "growth: ÷ the layer's first sample", short: "÷ first sample" },
  even: { label: "evenness: ÷ the median layer", short: "÷ median layer" },
};
