const say = (text) => { document.getElementById("refreshed").textContent = text; };
const seen = new Map();
const parts = (page) => page.querySelectorAll("header nav, section");
const refresh = async () => {
  if (!document.hidden) try {
    const answer = await fetch(location.pathname, {cache: "no-store"});
    if (!answer.ok) throw answer.status;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const now = [...parts(document)], next = [...parts(page)];
    const is_same_form = now.length === next.length;
    next.forEach((part, number) => {
      const html = part.innerHTML;  // what the reader has sorted stays so until something is new
      if (is_same_form && html !== (seen.get(number) ?? now[number].innerHTML)) now[number].replaceWith(part);
      seen.set(number, html);
    });
    if (!is_same_form) document.body.replaceChildren(...page.querySelectorAll("header, main"));
    say(`as of ${new Date().toLocaleTimeString()}`);
  } catch {
    say("yoloyard watch has ended or can't be reached: this is the last that it said");
  }
  setTimeout(refresh, {{ refresh_seconds }} * 1000);
};
setTimeout(refresh, {{ refresh_seconds }} * 1000);
