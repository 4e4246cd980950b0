// ComfyUI's page in a browser, for scripts that drive it as by hand. playwright-core is found
// through NODE_PATH.

import { createRequire } from 'node:module';

const { chromium } = createRequire(process.env.NODE_PATH + '/')('playwright-core');

// A page of a new browser: to close it, `page.context().browser().close()`.
export async function newPage(executablePath, width, height) {
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
  const page = await browser.newPage({ viewport: { width, height } });
  page.setDefaultTimeout(120_000);
  return page;
}

export async function open(page, url) {
  await page.goto(url);
  await page.waitForFunction(() => window.app?.extensionManager && window.LiteGraph);
  await page.waitForTimeout(3000); // for the template or the dialog that it opens with
}

export function set(page, settings) {
  return page.evaluate(async (settings) => {
    for (const [name, value] of Object.entries(settings)) {
      await window.app.extensionManager.setting.set(name, value);
    }
  }, settings);
}

// A workflow as the page saves it, in a tab of its own.
export async function load(page, graph, name) {
  await page.evaluate(([graph, name]) => window.app.loadGraphData(graph, true, true, name), [
    graph,
    name ?? null,
  ]);
}

// Press a button that queues the graph, or queue it, and wait for the end of the run.
export async function run(page, button) {
  const done = page.evaluate(
    () =>
      new Promise((resolve, reject) => {
        const failed = ({ detail }) => reject(new Error(detail.exception_message));
        window.app.api.addEventListener('execution_success', resolve, { once: true });
        window.app.api.addEventListener('execution_error', failed, { once: true });
      }).then(() => {}),
  );
  await (button ? button.click() : page.evaluate(() => window.app.queuePrompt(0)));
  await done;
}

// Wait until every node that shows pictures has got them.
export async function pictures(page) {
  await page.waitForFunction(() =>
    window.app.graph.nodes
      .filter((node) => ['SaveImage', 'PreviewImage'].includes(node.type))
      .every((node) => node.imgs?.every((picture) => picture.complete)),
  );
}
