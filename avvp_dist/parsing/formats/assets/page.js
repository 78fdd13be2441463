"use strict";
{
  const chart = document.getElementById("chart");
  const player = document.querySelector("video, audio");
  const seconds = Number(chart.dataset.seconds);
  const onset = (event) => Number(event.dataset.onset);
  const offset = (event) => Number(event.dataset.offset);
  const lanes = [...chart.querySelectorAll(".lane")]
    .map((lane) => [...lane.querySelectorAll(".event")])
    .filter((events) => events.length);
  const events = lanes.flat().sort((a, b) => onset(a) - onset(b)); // equal ones stay in row order

  // The position: a line across all rows, the clock, and the events that last at this moment.
  function show(time) {
    chart.style.setProperty("--now", time);
    document.getElementById("now").textContent = time.toFixed(1);
    for (const event of events) {
      event.classList.toggle("current", onset(event) <= time && time < offset(event));
    }
  }

  function seek(time, said) {
    const within = Math.min(Math.max(time, 0), seconds);
    if (player) player.currentTime = within;
    show(within);
    document.getElementById("said").textContent = `${said} ${within.toFixed(1)} s`;
  }

  // One event at a time is in the tab order; arrow keys choose it.
  function choose(event) {
    for (const other of events) other.tabIndex = other === event ? 0 : -1;
  }

  function inLane(event, step) {
    const lane = lanes.findIndex((one) => one.includes(event)) + step;
    if (!lanes[lane]) return undefined;
    const distance = (other) => Math.abs(onset(other) - onset(event));
    return lanes[lane].reduce((best, other) => (distance(other) < distance(best) ? other : best));
  }

  const moves = {
    ArrowRight: (event) => events[events.indexOf(event) + 1],
    ArrowLeft: (event) => events[events.indexOf(event) - 1],
    ArrowDown: (event) => inLane(event, 1),
    ArrowUp: (event) => inLane(event, -1),
    Home: () => events[0],
    End: () => events[events.length - 1],
  };

  chart.addEventListener("keydown", (pressed) => {
    const event = pressed.target.closest(".event");
    if (!event || !(pressed.key in moves) || pressed.ctrlKey || pressed.altKey || pressed.metaKey) {
      return;
    }
    pressed.preventDefault();
    moves[pressed.key](event)?.focus();
  });

  chart.addEventListener("focusin", (focus) => {
    const event = focus.target.closest(".event");
    if (event) choose(event);
  });

  chart.addEventListener("click", (click) => {
    const event = click.target.closest(".event");
    const track = click.target.closest(".lanes");
    if (event) {
      seek(onset(event), `${event.getAttribute("aria-label")}: at`);
    } else if (track) {
      const box = track.getBoundingClientRect();
      seek((seconds * (click.clientX - box.left)) / box.width, "At");
    }
  });

  // A long clip's chart is wider than its window: what plays stays in sight.
  function reveal() {
    const line = chart.querySelector(".playhead").getBoundingClientRect().left;
    const box = chart.parentElement.getBoundingClientRect();
    const start = chart.querySelector(".lanes").offsetLeft + box.left;
    if (line < start || line > box.right) {
      chart.parentElement.scrollLeft += line - start - box.width / 8;
    }
  }

  if (player) {
    const follow = () => {
      show(player.currentTime);
      if (player.paused || player.ended) return;
      reveal();
      requestAnimationFrame(follow);
    };
    for (const kind of ["play", "timeupdate", "seeked"]) player.addEventListener(kind, follow);
  }
  if (events.length) choose(events[0]);
  show(0);
}
