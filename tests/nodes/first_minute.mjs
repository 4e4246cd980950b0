// What a new user does, in both renderers of nodes: drops the blueprint into an empty graph, opens
// the app, opens another pack's old graph; and what every template looks like. Started by
// test_in_browser.py. Arguments: a JSON file that says where things are, see there. The
// last line printed is a JSON object.

import { readFileSync } from 'node:fs';

import { load, newPage, open, pictures, run, set } from './comfy_page.mjs';

const given = JSON.parse(readFileSync(process.argv[2]));
const APP = 'paint_by_example.app';
const page = await newPage(given.chromium, 1700, 1000);
const seen = {};
try {
  await open(page, given.url);
  await page.keyboard.press('Escape');
  await set(page, { 'Comfy.Minimap.Visible': false });
  for (const renderer of ['classic', 'vue']) {
    await set(page, { 'Comfy.VueNodes.Enabled': renderer === 'vue' });
    seen[renderer] = { templates: {}, old: {} };
    seen[renderer].blueprint = await blueprint(renderer);
    for (const [name, graph] of Object.entries(given.old)) {
      seen[renderer].old[name] = await replaceAll(renderer, name, graph);
    }
    for (const [name, graph] of Object.entries(given.templates)) {
      seen[renderer].templates[name] = await look(renderer, name, graph);
    }
    seen[renderer].app = await app(renderer);
  }
} finally {
  await page.screenshot({ path: `${given.folder}/last.png` });
  await page.context().browser().close();
}
console.log(JSON.stringify(seen));

function shoot(renderer, name) {
  return page.screenshot({ path: `${given.folder}/${renderer}_${name}.png` });
}

// ---- blueprint ----------------------------------------------------------------------------------

// From the search into an empty graph, wired to the example inputs by mouse, and run.
async function blueprint(renderer) {
  await page.evaluate(() =>
    window.app.extensionManager.command.execute('Comfy.NewBlankWorkflow'),
  );
  await page.waitForFunction(() => window.app.graph.nodes.length === 0);
  const titles = ['Example Inputs', 'Paint by Example', 'Preview Image'];
  for (const [column, title] of titles.entries()) await add(title, 300 + 450 * column, 220);
  for (const name of ['photo', 'mask', 'exemplar']) {
    await drag(await slot(titles[0], name), await slot(titles[1], name));
  }
  await drag(await slot(titles[1], 'image'), await slot(titles[2], 'images'));
  await takeFewSteps();
  await run(page, page.getByTestId('queue-button'));
  await pictures(page);
  await page.waitForTimeout(500);
  await shoot(renderer, 'blueprint');
  return { result: await shown() };
}

// Found by its title; it follows the mouse until the next click.
async function add(title, x, y) {
  const count = await page.evaluate(() => window.app.graph.nodes.length);
  const search = page.getByRole('combobox').last();
  do {
    await page.mouse.dblclick(850, 800); // a busy machine may take it for two clicks
  } while (!(await search.waitFor({ timeout: 4000 }).then(() => true, () => false)));
  await page.keyboard.type(title);
  await page.getByText(title, { exact: true }).first().waitFor();
  await page.waitForTimeout(700); // the order of what was found settles
  await page.keyboard.press('Enter');
  await page.waitForFunction((count) => window.app.graph.nodes.length > count, count);
  const isPlaced = ([title, y]) => {
    const { canvas, ds } = window.app.canvas;
    const node = window.app.graph.nodes.find((node) => node.title === title);
    const top = (node.pos[1] + ds.offset[1]) * ds.scale + canvas.getBoundingClientRect().top;
    return !node.flags.ghost && Math.abs(top - y) < 100;
  };
  for (let left = 20; left > 0; left--) { // the page misses a move or a click now and then
    await page.mouse.move(x - 5, y - 5);
    await page.mouse.move(x, y, { steps: 4 });
    await page.waitForTimeout(200);
    await page.mouse.click(x, y);
    const placed = page.waitForFunction(isPlaced, [title, y], { timeout: 3000 });
    if (await placed.then(() => true, () => false)) return;
  }
  throw new Error(`${title} cannot be placed`);
}

// Where a slot of a node is on the page.
function slot(title, name) {
  return page.evaluate(
    ([title, name]) => {
      const node = window.app.graph.nodes.find((node) => node.title === title);
      const input = node.inputs.findIndex((it) => it.name === name);
      const output = node.outputs.findIndex((it) => it.name === name);
      const [x, y] = input < 0 ? node.getOutputPos(output) : node.getInputPos(input);
      const { ds, canvas } = window.app.canvas;
      const { left, top } = canvas.getBoundingClientRect();
      return [(x + ds.offset[0]) * ds.scale + left, (y + ds.offset[1]) * ds.scale + top];
    },
    [title, name],
  );
}

async function drag(from, to) {
  await page.mouse.move(...from);
  await page.mouse.down();
  await page.mouse.move(...to, { steps: 8 });
  await page.waitForTimeout(100);
  await page.mouse.up();
}

// ---- other packs' graphs ------------------------------------------------------------------------

async function replaceAll(renderer, name, graph) {
  await load(page, graph, name);
  await page.getByTestId('error-overlay-see-errors').click();
  const replace = page.getByRole('button', { name: 'Replace All' });
  await replace.waitFor();
  await shoot(renderer, `${name}_offered`);
  const offered = await page.evaluate(() => document.body.innerText);
  await replace.click();
  await page.waitForFunction(() =>
    window.app.graph.nodes.every((node) => node.type in window.LiteGraph.registered_node_types),
  );
  await takeFewSteps();
  await run(page, page.getByTestId('queue-button'));
  await pictures(page);
  await page.waitForTimeout(500);
  await shoot(renderer, name);
  await page.getByRole('button', { name: 'Toggle properties panel' }).first().click();
  const nodes = await page.evaluate(() => window.app.graph.nodes.map((node) => node.type));
  return { offered, nodes, result: await shown() };
}

// As somebody who only wants to see whether it works.
async function takeFewSteps() {
  await page.evaluate(() => {
    for (const node of window.app.graph.nodes) {
      for (const widget of node.widgets ?? []) {
        if (widget.name === 'steps') widget.value = Math.min(widget.value, 4);
      }
    }
  });
  await page.waitForTimeout(500);
}

// Size of the picture in the node that shows one.
function shown() {
  return page.evaluate(() => {
    const [picture] = window.app.graph.nodes.find((node) => node.type === 'PreviewImage').imgs;
    return [picture.naturalWidth, picture.naturalHeight];
  });
}

// ---- templates ----------------------------------------------------------------------------------

// Boxes of nodes and groups as they are drawn, and texts that do not fit into their node.
async function look(renderer, name, graph) {
  await load(page, { ...graph, extra: { ...graph.extra, linearMode: false } });
  await page.evaluate(() => {
    const corners = window.app.graph.nodes.map((node) => node.boundingRect);
    const left = Math.min(...corners.map(([x]) => x));
    const top = Math.min(...corners.map(([, y]) => y));
    const right = Math.max(...corners.map(([x, , width]) => x + width));
    const { ds } = window.app.canvas;
    ds.scale = 1600 / (right - left);
    ds.offset = [70 / ds.scale - left, 110 / ds.scale - top];
    window.app.canvas.setDirty(true, true);
  });
  await page.waitForTimeout(900); // sizes settle
  await shoot(renderer, name);
  return page.evaluate(() => {
    const { ds, canvas } = window.app.canvas;
    const corner = canvas.getBoundingClientRect();
    const onGraph = ({ left, top, right, bottom }) => [
      (left - corner.left) / ds.scale - ds.offset[0],
      (top - corner.top) / ds.scale - ds.offset[1],
      (right - corner.left) / ds.scale - ds.offset[0],
      (bottom - corner.top) / ds.scale - ds.offset[1],
    ];
    const drawn = (node) => {
      const element = document.querySelector(`[data-node-id="${node.id}"]`);
      if (!element) {
        const [x, y, width, height] = node.boundingRect;
        return [x, y, x + width, y + height];
      }
      // A message of an error hangs below the node itself.
      const [left, top, right, bottom] = onGraph(element.getBoundingClientRect());
      const below = [...element.querySelectorAll('*')].map(
        (it) => onGraph(it.getBoundingClientRect())[3],
      );
      return [left, top, right, Math.max(bottom, ...below)];
    };
    const texts = document.querySelectorAll(
      '.comfy-multiline-input, .tiptap, [data-node-id] textarea, .comfy-markdown-content',
    );
    return {
      nodes: window.app.graph.nodes.map((node) => [`${node.title} (${node.id})`, drawn(node)]),
      groups: window.app.graph.groups.map(({ title, pos: [x, y], size: [width, height] }) => [
        title,
        [x, y, x + width, y + height],
      ]),
      cut: [...texts]
        .filter((it) => it.offsetParent && it.scrollHeight > it.clientHeight + 2)
        .map((it) => it.value ?? it.innerText),
    };
  });
}

// ---- app ----------------------------------------------------------------------------------------

// The template as it opens, its pictures chosen, the mask painted, and run.
async function app(renderer) {
  if (renderer === 'classic') {
    await page.getByRole('button', { name: 'Templates' }).first().click();
    await page.getByRole('button', { name: given.pack }).click();
    await page.getByText(APP, { exact: true }).first().click();
  } else {
    await load(page, given.templates[APP], APP);
  }
  const items = page.getByTestId('app-mode-widget-item');
  await items.first().waitFor();
  if (renderer === 'classic') await page.getByRole('button', { name: 'Skip' }).click(); // its tour
  await shoot(renderer, 'app_opened');
  const opened = {
    inputs: await items.allInnerTexts(),
    graph: await page.locator('#graph-canvas').isVisible(),
    complaints: await page.getByTestId('error-overlay-see-errors').count(),
  };
  for (const [number, file] of given.pictures.entries()) {
    const chooser = page.waitForEvent('filechooser');
    await items.nth(number).getByText('Click to browse').click();
    await (await chooser).setFiles(file);
    await items.nth(number).getByRole('img').waitFor();
  }
  await paintMask(renderer, items.first());
  await page.getByRole('button', { name: 'Run', exact: true }).click();
  const saved = 'img[src*="type=output"][src*="paint_by_example_"]';
  const result = page.locator(`${saved} >> visible=true`).first();
  await result.waitFor();
  await page.waitForFunction((it) => it.naturalWidth > 0, await result.elementHandle());
  await page.waitForTimeout(1000);
  await shoot(renderer, 'app');
  const size = await result.evaluate((it) => [it.naturalWidth, it.naturalHeight, it.src]);
  await page.getByRole('button', { name: 'Enter node graph' }).click();
  await page.locator('#graph-canvas').waitFor();
  return { ...opened, result: size };
}

// A stroke in the mask editor.
async function paintMask(renderer, item) {
  await item.getByRole('img').hover();
  await item.getByRole('button', { name: 'Open in Mask Editor' }).click();
  const save = page.getByRole('button', { name: /\bSave$/ });
  await save.waitFor();
  await page.getByText('Thickness').locator('..').locator('input').first().fill('60');
  await page.keyboard.press('Tab');
  await page.waitForTimeout(1000);
  await page.mouse.move(600, 650);
  await page.mouse.down();
  await page.mouse.move(700, 650, { steps: 12 });
  await page.mouse.up();
  await page.waitForTimeout(300);
  await shoot(renderer, 'mask_editor');
  await save.click();
  await item.locator('img[src*="masked"]').waitFor();
}
