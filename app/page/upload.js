// Sends a file and tells how much of it has gone, which fetch cannot.

/**
 * As fetch, with `onsent`: called with the share of the file that has been sent, from 0 to 1.
 *
 * Rejects as fetch does: with an AbortError once the view is left, with a TypeError where there is no answer.
 */
export function upload(path, { method, body, headers, signal, onsent }) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const request = new XMLHttpRequest();
    const leave = () => request.abort();
    request.open(method, path);
    request.responseType = "blob";
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => onsent(total ? loaded / total : 0);
    request.upload.onload = () => onsent(1);
    request.onload = () => {
      try {
        resolve(answerOf(request));
      } catch (error) { // a status that no answer has
        reject(error);
      }
    };
    request.onerror = () => reject(new TypeError("no answer"));
    request.onabort = () => reject(new DOMException("left", "AbortError"));
    request.onloadend = () => signal?.removeEventListener("abort", leave);
    signal?.addEventListener("abort", leave);
    onsent(0);
    request.send(body.slice()); // a file itself would be sent as it is by now, rather than as it was chosen
  });
}

function answerOf(request) {
  const { response, status, statusText } = request;
  const headers = request.getAllResponseHeaders().trim().split(/[\r\n]+/).filter(Boolean).map((line) => {
    const at = line.indexOf(":");
    return [line.slice(0, at), line.slice(at + 1).trim()];
  });
  return new Response([204, 205, 304].includes(status) ? null : response, { status, statusText, headers });
}
