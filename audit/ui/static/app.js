// The little script of the review page: live rows, "/" to the search field,
// copying. Every page works without it.
'use strict';

document.addEventListener('keydown', (e) => {
  const field = document.querySelector('[data-focus]');
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? '');
  if (e.key === '/' && field && !typing && !e.ctrlKey && !e.metaKey && !e.altKey) {
    e.preventDefault();
    field.focus();
    field.select();
  }
});

for (const button of document.querySelectorAll('[data-copy]')) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = 'Copied';
  });
}

const live = document.getElementById('live');
if (live) {
  const most = 500; // rows that the page keeps
  const body = live.querySelector('tbody');
  const state = document.getElementById('live-state');
  const pause = document.getElementById('live-pause');
  let held = [];
  let paused = false;

  const say = (name, text) => {
    state.dataset.state = name;
    if (state.textContent !== text) state.textContent = text;
  };
  // The server has escaped what records hold, as on every page.
  const show = (html) => {
    body.insertAdjacentHTML('afterbegin', html);
    while (body.rows.length > most) body.lastElementChild.remove();
  };
  const source = new EventSource(live.dataset.events);
  source.addEventListener('open', () => say(paused ? 'wait' : 'on', paused ? 'Paused' : 'Following'));
  source.addEventListener('error', () => say('off', source.readyState === EventSource.CLOSED ? 'Ended: reload the page' : 'Connecting again…'));
  source.addEventListener('row', (e) => {
    if (!paused) return show(e.data);
    held.push(e.data);
    if (held.length > most) held.shift();
    say('wait', `Paused, ${held.length} waiting`);
  });
  pause.hidden = false;
  pause.addEventListener('click', () => {
    paused = !paused;
    pause.setAttribute('aria-pressed', String(paused));
    pause.textContent = paused ? 'Go on' : 'Pause';
    if (!paused) {
      held.forEach(show);
      held = [];
    }
    say(paused ? 'wait' : 'on', paused ? 'Paused' : 'Following');
  });
}
