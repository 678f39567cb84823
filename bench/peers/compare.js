#!/usr/bin/env node
'use strict';
// attn against ONNX Runtime, taking turns in one run: A B A B ... Both must give the same numbers before they are timed.
//
//   node compare.js [sweep] [--pairs N] [--threads N] [--only TEXT] [--json FILE] [--attn PROGRAM] [--rival PROGRAM]
//
// sweep      sequence lengths 128 to 4096 for plot.py, instead of the fixed shapes
// --only     the works whose name contains TEXT: "causal", "layer", "gqa", "quantised", "attention full 1 2048"
// --attn     attn_peer, where it is not in build/release/bench/peers
// --rival    another attn_peer (other flags, another version) in place of ONNX Runtime
const {spawn} = require('child_process');
const {availableParallelism} = require('os');
const {writeFileSync, existsSync} = require('fs');
const path = require('path');
const readline = require('readline');
const onnx = require('./onnx.js');

/** Numbers within (-bound, bound) that depend on seed and place alone; ../support.hpp has the same formula. */
function element(i, seed, bound = 1) {
  let h = Math.imul(i + Math.imul(seed, 0x85EBCA6B), 0x9E3779B1);
  h = Math.imul(h ^ (h >>> 15), 0x85EBCA77);
  h ^= h >>> 13;
  return h * (bound / 2 ** 31);
}
function filled(size, seed, bound) {
  const data = new Float32Array(size);
  for (let i = 0; i < size; ++i) data[i] = element(i, seed, bound);
  return data;
}

/** [heads, capacity, D] of which the first `past` rows of each head are filled, by their number among all of these. */
function pastRows(heads, past, capacity, D, seed) {
  const data = new Float32Array(heads * capacity * D), rows = filled(heads * past * D, seed);
  for (let h = 0; h < heads; ++h) data.set(rows.subarray(h * past * D, (h + 1) * past * D), h * capacity * D);
  return data;
}

/** attn in a process of its own; attn_peer.cpp tells the protocol. */
class Attn {
  constructor(program, threads) {
    this.name = path.basename(program);
    this.waiting = [];
    this.process = spawn(program, {stdio: ['pipe', 'pipe', 'inherit'], env: {...process.env, ATTN_NUM_THREADS: `${threads}`}});
    this.process.on('error', error => fail(`${program}: ${error.message}`));
    this.process.stdin.on('error', () => fail(`${program} does not listen: is it attn_peer?`));
    this.process.on('exit', code => code && fail(`${program} ended with code ${code}`));
    readline.createInterface({input: this.process.stdout}).on('line', line => {
      if (line.startsWith('error')) fail(`${program}: ${line}`);
      this.waiting.shift()(line);
    });
  }
  ask(line) {
    return new Promise(resolve => {
      this.waiting.push(resolve);
      this.process.stdin.write(line + '\n');
    });
  }
  async machine() {
    const [isa, threads, peak, bandwidth] = (await this.ask('machine')).split(' ');
    return {isa, threads: +threads, peak_gflops: +peak, bandwidth_gbs: +bandwidth};
  }
  async peak() { return +(await this.ask('peak')); }
  async prepare(work) { return (await this.ask(work.name)).split(' ').map(Number); }
  async run(times) { return +(await this.ask(`run ${times}`)); }
  end() { this.process.stdin.end(); }
}

/** ONNX Runtime in this process. Its times are less what a call of an empty model with the same inputs takes. */
class OnnxRuntime {
  constructor(threads) {
    try {
      this.ort = require('onnxruntime-node');
    } catch (error) {
      fail(`onnxruntime-node is not here (${error.code}). In bench/peers: npm install --ignore-scripts; ` +
           'or set NODE_PATH to the node_modules that has it.');
    }
    this.name = `ONNX Runtime ${this.ort.env.versions.node}`;
    this.options = {intraOpNumThreads: threads, interOpNumThreads: 1, graphOptimizationLevel: 'all'};
  }
  async prepare(work) {
    const {model, emptyInputs, feeds, fetches} = work.kind === 'gqa' ? this.groupQuery(work) :
        work.kind === 'quantised' ? this.quantised(work) : this.plain(work);
    this.feeds = feeds;
    this.fetches = fetches;
    await this.session?.release();
    this.session = await this.create(model);
    const [first] = Object.keys(feeds);
    const empty = await this.create(onnx.emptyModel(emptyInputs, first, feeds[first].dims.length));
    for (let i = 0; i < 3; ++i) this.overhead = await this.time(20, () => empty.run(feeds));
    await empty.release();
    const {y} = await this.session.run(feeds, fetches);
    if (work.kind === 'gqa' && feeds.past_key.data[(work.past + work.S - 1) * work.D] !== feeds.k.data[(work.S - 1) * work.G * work.D])
      fail(`${work.name}: the new keys are not behind the old ones, past and present are not one buffer`);
    return Array.from({length: 32}, (_, i) => y.data[Math.floor(i * (y.data.length - 1) / 31)]);
  }
  plain({kind, causal, B, S, E, H}) {
    const shape = [B, S, E], size = B * S * E, names = kind === 'layer' ? ['x'] : ['q', 'k', 'v'];
    return {model: kind === 'layer' ? onnx.layerModel(B, S, E, H, this.weights(E)) : onnx.attentionModel(B, S, H, E / H, causal),
            emptyInputs: onnx.floats(names, shape),
            feeds: Object.fromEntries(names.map((name, i) => [name, this.tensor(filled(size, i + 1), shape)])),
            fetches: {y: this.tensor(new Float32Array(size), shape)}};
  }
  /** Past and present are one buffer, as its fastest path wants it: new keys and values are written behind the old ones. */
  groupQuery({B, S, H, G, D, past}) {
    const capacity = past + S, shape = heads => [B, S, heads * D], cache = [B, G, capacity, D];
    const [keys, values] = [4, 5].map(seed => this.tensor(pastRows(B * G, past, capacity, D, seed), cache));
    const int32 = (numbers, dims) => new this.ort.Tensor('int32', Int32Array.from(numbers), dims);
    const size = heads => B * S * heads * D;
    return {model: onnx.groupQueryModel(B, S, H, G, D, capacity),
            emptyInputs: onnx.groupQueryInputs(B, S, H, G, D, capacity),
            feeds: {q: this.tensor(filled(size(H), 1), shape(H)), k: this.tensor(filled(size(G), 2), shape(G)),
                    v: this.tensor(filled(size(G), 3), shape(G)), past_key: keys, past_value: values,
                    seqlens_k: int32(Array(B).fill(capacity - 1), [B]), total_sequence_length: int32([capacity], [])},
            fetches: {y: this.tensor(new Float32Array(size(H)), shape(H)), present_key: keys, present_value: values}};
  }
  /** Weights of `bits`, numbers from 0 to 2^bits - 1 of which 2^(bits - 1) stands for 0; attn_peer.cpp has the same. */
  quantised({M, N, K, bits}) {
    const zero = 2 ** (bits - 1), packed = new Uint8Array(N * K * bits / 8);
    for (let i = 0; i < N * K; ++i) {
      const number = Math.max(zero - 127, Math.floor((element(i, 20) + 1) * zero));
      packed[i * bits >> 3] |= number << i * bits % 8;
    }
    return {model: onnx.quantisedModel(M, N, K, bits, {packed, scales: new Float32Array(N * K / 32).fill(2 ** -12)}),
            emptyInputs: onnx.floats(['x'], [M, K]), feeds: {x: this.tensor(filled(M * K, 1), [M, K])},
            fetches: {y: this.tensor(new Float32Array(M * N), [M, N])}};
  }
  async run(times) { return await this.time(times, () => this.session.run(this.feeds, this.fetches)) - this.overhead; }

  tensor(data, shape) { return new this.ort.Tensor('float32', data, shape); }
  create(model) { return this.ort.InferenceSession.create(model, this.options); }
  async time(times, call) {
    const start = process.hrtime.bigint();
    for (let i = 0; i < times; ++i) await call();
    return Number(process.hrtime.bigint() - start) * 1e-6 / times;
  }
  weights(E) {  // attn's are [out,in], MatMul's [in,out]
    const bound = 1 / Math.sqrt(E);
    return [10, 12, 14, 16].map(seed => {
      const weight = new Float32Array(E * E);
      for (let o = 0; o < E; ++o)
        for (let i = 0; i < E; ++i) weight[i * E + o] = element(o * E + i, seed, bound);
      return {weight, bias: filled(E, seed + 1, bound)};
    });
  }
  end() {}
}

function attention(causal, B, S, H, D) {
  const operations = 4 * B * H * S * S * D * (causal ? 0.5 : 1);  // causal counts as half the work
  return {name: `attention ${causal ? 'causal' : 'full'} ${B} ${S} ${H} ${D}`, kind: 'attention', causal, B, S, E: H * D, H,
          operations};
}
function layer(B, S, E, H) {
  return {name: `layer ${B} ${S} ${E} ${H}`, kind: 'layer', causal: false, B, S, E, H, operations: B * S * E * (8 * E + 4 * S)};
}
/** Causal attention of S new tokens after `past` ones, with the new keys and values appended to a cache. */
function groupQuery(B, S, H, G, D, past) {
  return {name: `gqa ${B} ${S} ${H} ${G} ${D} ${past}`, kind: 'gqa', B, S, E: H * D, H, G, D, past,
          operations: 4 * B * H * S * D * (past + S / 2)};
}
/** A linear layer whose weights have few bits. */
function quantised(bits, M, N, K) {
  return {name: `quantised ${bits} ${M} ${N} ${K}`, kind: 'quantised', bits, M, N, K, tolerance: 1e-2, operations: 2 * M * N * K};
}
function fixedWorks() {
  const shapes = [[1, 2048, 32, 128], [1, 1024, 12, 64], [8, 128, 8, 32]];
  return [...[false, true].flatMap(causal => shapes.map(shape => attention(causal, ...shape))),
          ...[[8, 128, 256, 8], [1, 1024, 768, 12], [1, 2048, 1024, 8], [1, 512, 4096, 32], [1, 2048, 4096, 32]]
              .map(shape => layer(...shape)),
          ...[[1, 2048, 32, 8, 128, 0], [1, 1024, 12, 12, 64, 0], [8, 128, 8, 8, 32, 0], [1, 512, 32, 8, 128, 3584],
              [1, 1, 32, 8, 128, 4095]].map(shape => groupQuery(...shape)),
          ...[8, 4].flatMap(bits => [1, 512].map(M => quantised(bits, M, 4096, 4096)))];
}
function sweepWorks() {
  return [[12, 64], [32, 128]].flatMap(([H, D]) => [false, true].flatMap(
      causal => [128, 256, 512, 1024, 2048, 4096].map(S => attention(causal, 1, S, H, D))));
}

const pause = () => new Promise(resolve => setTimeout(resolve, 20));  // threads that wait for work spin: let them end
function median(values) {
  const x = [...values].sort((a, b) => a - b), middle = x.length >> 1;
  return x.length % 2 ? x[middle] : (x[middle - 1] + x[middle]) / 2;
}
function fail(text) {
  console.error(text);
  process.exit(1);
}

/** The runs of one sample, some 100 ms together, after one that is not counted. */
async function sample(peer, times) {
  await pause();
  await peer.run(1);
  return peer.run(times);
}

async function compare(work, attn, rival, pairs) {
  const ours = await attn.prepare(work), theirs = await rival.prepare(work);
  const size = Math.max(...theirs.map(Math.abs)), difference = Math.max(...ours.map((x, i) => Math.abs(x - theirs[i])));
  if (!(difference <= (work.tolerance ?? 1e-4) * size)) fail(`${work.name}: results differ by ${difference}, numbers are up to ${size}`);

  const times = Math.min(200, Math.max(1, Math.round(100 / await sample(attn, 1))));
  const attn_ms = [], rival_ms = [], shares = [];
  for (let pair = 0; pair < pairs; ++pair) {
    attn_ms.push(await sample(attn, times));
    // The peak right after the work, each time: measured once, it was off by 30 % on a shared host.
    shares.push(work.operations / attn_ms.at(-1) * 1e-6 / await attn.peak());
    rival_ms.push(await sample(rival, times));
  }
  const ratios = attn_ms.map((ms, i) => rival_ms[i] / ms);
  return {work: work.name, shape: {B: work.B, S: work.S, E: work.E, H: work.H, G: work.G, past: work.past}, rival: rival.name, operations: work.operations,
          pairs, share_of_peak: median(shares), rival_overhead_ms: rival.overhead, attn_ms, rival_ms, ratio: median(ratios),
          ratio_min: Math.min(...ratios), ratio_max: Math.max(...ratios)};
}

function report(r) {
  const rate = ms => r.operations / median(ms) * 1e-6;
  console.log([r.work.padEnd(40), median(r.attn_ms).toFixed(3).padStart(10), rate(r.attn_ms).toFixed(0).padStart(8),
               r.share_of_peak.toFixed(2).padStart(7), median(r.rival_ms).toFixed(3).padStart(10),
               rate(r.rival_ms).toFixed(0).padStart(8), `${r.ratio.toFixed(2)} [${r.ratio_min.toFixed(2)}, ${r.ratio_max.toFixed(2)}]`
                   .padStart(19)].join(' '));
}

async function main(args) {
  const flags = {pairs: '9', threads: `${availableParallelism()}`, only: '', json: '',
                 attn: path.join(__dirname, '../../build/release/bench/peers/attn_peer'), rival: ''};
  const sweep = args[0] === 'sweep';
  for (let i = sweep ? 1 : 0; i < args.length; i += 2) {
    const name = args[i].replace(/^--/, '');
    if (!(name in flags) || !args[i].startsWith('--') || args[i + 1] === undefined)
      fail('expected [sweep] [--pairs N] [--threads N] [--only TEXT] [--json FILE] [--attn PROGRAM] [--rival PROGRAM], got ' + args[i]);
    flags[name] = args[i + 1];
  }
  for (const name of ['pairs', 'threads'])
    if (!/^[1-9]\d*$/.test(flags[name])) fail(`--${name}, expected a positive number, got ${flags[name]}`);
  if (!existsSync(flags.attn)) fail(`no attn_peer at ${flags.attn}: build the preset "release", or say where with --attn`);
  const works = (sweep ? sweepWorks() : fixedWorks()).filter(work => work.name.includes(flags.only));

  const rival = flags.rival ? new Attn(flags.rival, +flags.threads) : new OnnxRuntime(+flags.threads);
  const attn = new Attn(flags.attn, +flags.threads);
  const machine = await attn.machine();
  console.log(`isa ${machine.isa}, threads ${machine.threads}, peak ${machine.peak_gflops.toFixed(0)} GFLOP/s, ` +
              `rival ${rival.name}, ${flags.pairs} pairs`);
  console.log(`${'work (B S H D, B S E H, B S H G D past)'.padEnd(40)}    attn ms  GFLOP/s of peak   rival ms  GFLOP/s   times as fast [min, max]`);
  const results = [];
  for (const work of works) {
    results.push(await compare(work, attn, rival, +flags.pairs));
    report(results.at(-1));
    if (flags.json) writeFileSync(flags.json, JSON.stringify({machine, results}, null, 1) + '\n');
  }
  attn.end();
  rival.end();
}

main(process.argv.slice(2)).catch(error => fail(error.stack));
