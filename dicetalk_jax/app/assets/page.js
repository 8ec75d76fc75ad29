// What this browser remembers, and whether the server is there.
window.dicetalk = (() => {
  const KEY = "dicetalk.";

  function visitor() {
    let token = localStorage.getItem(KEY + "visitor");
    if (!/^[0-9a-f]{32}$/.test(token || "")) {
      const bytes = crypto.getRandomValues(new Uint8Array(16));
      token = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
      localStorage.setItem(KEY + "visitor", token);
    }
    return token;
  }

  // A tab has its own generation and settings; all tabs of a browser share the results.
  function memory() {
    let settings = null;
    try { settings = JSON.parse(sessionStorage.getItem(KEY + "settings")); } catch { /* none */ }
    const generation = sessionStorage.getItem(KEY + "generation") || "";
    return { visitor: visitor(), generation, settings, restarted: isOfAnotherServer() };
  }

  // Whether this tab was last loaded from a server that has been restarted since.
  let restarted = null;
  function isOfAnotherServer() {
    const id = window.gradio_config && window.gradio_config.app_id;
    if (restarted === null && id) {
      const before = sessionStorage.getItem(KEY + "server");
      restarted = before !== null && before !== String(id);
      sessionStorage.setItem(KEY + "server", id);
    }
    return Boolean(restarted);
  }

  function remember(generation) {
    if (generation) sessionStorage.setItem(KEY + "generation", generation);
    else sessionStorage.removeItem(KEY + "generation");
  }

  function rememberSettings(settings) { sessionStorage.setItem(KEY + "settings", JSON.stringify(settings)); }

  function say(text) {
    let banner = document.getElementById("dt-banner");
    if (!banner) {
      banner = document.createElement("div");
      banner.id = "dt-banner";
      banner.setAttribute("role", "alert");
      document.body.prepend(banner);
    }
    banner.textContent = text;
    banner.hidden = !text;
  }

  // A restarted server has another id; the page in this tab is of the old one.
  let server = null, missed = 0;
  async function look() {
    try {
      const answer = await fetch("gradio_api/app_id", { cache: "no-store", signal: AbortSignal.timeout(4000) });
      if (!answer.ok) throw new Error(answer.status);
      const id = (await answer.json()).app_id;
      if (server !== null && id !== server) {
        location.reload();
        return;
      }
      server = id;
      if (missed > 1) say("");
      missed = 0;
    } catch {
      missed += 1;
      // One answer may get lost while the server computes.
      if (missed > 1) say("The server does not answer. This page goes on by itself when it is there again.");
    }
    setTimeout(look, missed ? 1000 : 3000);
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-dt]");
    if (!button) return;
    if (button.dataset.dt === "copy") {
      const text = button.parentElement.querySelector("code").textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(button.parentElement.querySelector("code"));
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    }
    if (button.dataset.dt === "play") {
      const videos = [...document.querySelectorAll(".dt-cards video")];
      for (const video of videos) { video.pause(); video.currentTime = 0; video.muted = video !== videos[0]; }
      for (const video of videos) video.play();
    }
  });

  // The server refuses what is too large as well, but only once all of it has been sent.
  const limit = window.dicetalkLimit;
  function refuseTooLarge(event) {
    const field = event.target.closest && event.target.closest("#portrait, #speech, #clip");
    const files = [...((event.dataTransfer || event.clipboardData || event.target).files || [])];
    if (!field || !files.length) return;
    const message = document.getElementById(`${field.id === "clip" ? "emotion" : field.id}-message`);
    const told = message.parentElement.querySelector(`.dt-too-large[data-of=${field.id}]`);
    if (told) told.remove();
    const large = files.find((file) => file.size > limit.bytes);
    if (!large) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (event.type === "change") event.target.value = "";
    const said = document.createElement("p");
    said.className = "dt-message dt-error dt-too-large";
    said.dataset.of = field.id;
    said.setAttribute("role", "alert");
    said.textContent = `The file ${large.name} has ${(large.size / 1e6).toFixed(1)} MB; this server takes up to ` +
      `${limit.bytes / 1e6} MB (--max-upload-mb).`;
    message.before(said);
  }
  for (const given of ["change", "drop", "paste"]) document.addEventListener(given, refuseTooLarge, true);

  look();
  return { memory, remember, rememberSettings };
})();
