// Server-sent events off the body of a fetch response.

/**
 * Yields `{data}` for each event, its data lines joined, and `{comment}` for each comment line, such
 * as the server's keep-alive. What other fields an event has is left out.
 */
export async function* events(body) {
  let data = [];
  for await (const line of lines(body)) {
    if (line.startsWith(":")) {
      yield { comment: line.slice(1).trim() };
    } else if (line.startsWith("data:")) {
      data.push(line.slice(5).replace(/^ /, ""));
    } else if (line === "" && data.length > 0) {
      yield { data: data.join("\n") };
      data = [];
    }
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const found = (rest + value).split(/\r\n|\n|\r(?!$)/); // a last \r may be half of \r\n
      rest = found.pop();
      yield* found;
    }
  } finally {
    await reader.cancel().catch(() => {}); // a stream that has failed cannot be cancelled
  }
}
