// Parts that are asked for again until they no longer say so; the page is whole without it.
const POLL_MILLISECONDS = 5000;

async function poll(part) {
  const answer = await fetch(part.dataset.poll, { headers: { Accept: "text/html" }, redirect: "error" });
  if (!answer.ok) return;
  const told = new DOMParser().parseFromString(await answer.text(), "text/html").body.firstElementChild;
  if (told) part.replaceWith(told);
}

async function pollAll() {
  const parts = document.querySelectorAll("[data-poll]");
  if (!parts.length) return;
  if (!document.hidden) await Promise.allSettled([...parts].map(poll));
  setTimeout(pollAll, POLL_MILLISECONDS);
}

pollAll();
