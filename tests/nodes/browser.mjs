// What a user sees: the host's page in a real browser, driven as by hand. test_in_browser.py starts
// it. Arguments: address of the host, name of the pack, path of chromium, folder for screenshots. The
// last line printed is a JSON object.

import { newPage, open, set } from './comfy_page.mjs';

const [url, pack, executablePath, folder] = process.argv.slice(2);
const seen = { errors: [], progress: [] };
const page = await newPage(executablePath, 1600, 1000);

await open(page, url);
// The template, from the pack's own.
if (!(await page.getByText(pack).isVisible())) {
  await page.getByRole('button', { name: 'Templates' }).first().click();
}
await page.getByText(pack).click();
const errors = seen.errors;
const complain = (error) => errors.push(error);
page.on('console', (message) => {
  if (message.type() === 'error') complain(`${message.text()} ${message.location().url}`);
});
page.on('pageerror', (error) => complain(String(error)));
await page.getByText('paint_by_example', { exact: true }).first().click();
await page.waitForFunction(() => window.app.graph.nodes.some((n) => n.type === 'PBELoader'));
await page.waitForTimeout(2000);
seen.nodes = await page.evaluate(() =>
  window.app.graph.nodes.map((node) => ({
    type: node.type,
    known: node.type in window.LiteGraph.registered_node_types,
    red: Boolean(node.has_errors),
  })),
);

// Queued: progress in the page, then the picture in the node. The page notes what it shows itself:
// asked from here, a busy one would answer too seldom.
await page.evaluate(() => {
  window.shownProgress = [];
  new MutationObserver(() => {
    const found = document.body.textContent.match(/PBE Inpaint Sampler\s*(\d+)%/);
    if (found) window.shownProgress.push(Number(found[1]));
  }).observe(document.body, { childList: true, characterData: true, subtree: true });
});
await page.getByTestId('queue-button').first().click();
const look = () =>
  page.evaluate(() => {
    const [picture] = window.app.graph.nodes.find((n) => n.type === 'SaveImage').imgs ?? [];
    const result = picture ? [picture.naturalWidth, picture.naturalHeight] : null;
    return { result, progress: window.shownProgress };
  });
const deadline = Date.now() + 120_000;
while (!seen.result && Date.now() < deadline) {
  Object.assign(seen, await look());
  if (seen.progress.at(-1) >= 50 && !seen.during) {
    seen.during = true;
    await page.screenshot({ path: `${folder}/during.png` });
  }
  await page.waitForTimeout(100);
}
await page.waitForTimeout(1000);
await page.screenshot({ path: `${folder}/done.png` });

seen.errors = [...seen.errors]; // later ones are the page's own: it asks for files that may not be

// The help page of a node.
await page.evaluate(() =>
  window.app.canvas.selectNode(window.app.graph.nodes.find((n) => n.type === 'PBEExemplarEncoder')),
);
await page.getByTestId('info-button').first().click();
await page.waitForTimeout(3000);
seen.help = await page.evaluate(() => document.body.innerText);
await page.screenshot({ path: `${folder}/help.png` });

// The labels in another language.
await set(page, { 'Comfy.Locale': 'ko' });
await open(page, url);
seen.korean = await page.evaluate(
  () => window.LiteGraph.registered_node_types.PBEInpaintSampler.title,
);
await page.screenshot({ path: `${folder}/korean.png` });
await set(page, { 'Comfy.Locale': 'en' }); // the host keeps it for those who come next
await page.context().browser().close();
console.log(JSON.stringify(seen));
