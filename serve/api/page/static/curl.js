// The shell command that asks the same. A file's bytes are read by the command, so that it stays short.

const KEY = "AVLLM_API_KEY";
const END = "END-OF-REQUEST";
const FILE = crypto.randomUUID();

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const unexpanded = (text) => text.replaceAll(/[\\$`]/g, "\\$&");

// `file` is the name of a file whose data stands in the body as `data:TYPE;base64,`, or null.
export function curlCommand(origin, body, file, hasKey) {
  const text = JSON.stringify(body, null, 1);
  const [before, ...after] = file === null ? [text] : text.split(FILE);
  const shown = file === null ? text : `${unexpanded(before)}$(base64 < ${quoted(file)} | tr -d '\\n')${unexpanded(after.join(FILE))}`;
  const lines = [
    `curl -sSN ${origin}/v1/chat/completions -H 'Content-Type: application/json'`,
    ...(hasKey ? [`  -H "Authorization: Bearer $${KEY}"`] : []),
    `  --data-binary @- <<${file === null ? `'${END}'` : END}`,
  ];
  return `${lines.join(" \\\n")}\n${shown}\n${END}\n`;
}

// A part of a message whose data the command reads from the file.
export const withoutData = (url) => `${url.slice(0, url.indexOf(",") + 1)}${FILE}`;
