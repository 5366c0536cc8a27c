// The answer in what a framework hands to its model, whatever its types: all text, and all strings that are images.

const IMAGE_STARTS = ["iVBOR", "/9j/", "UklGR"]; // PNG, JPEG, WebP in base64

/** Where the framework has no mark for an error, what the JSON text says of it counts: the model can read that. */
export function seen(part, error) {
  const texts = [];
  const images = [];
  const walk = (part) => {
    if (typeof part === "string") {
      const data = part.startsWith("data:image/") ? part.slice(part.indexOf(";base64,") + 8) : part;
      (data.length > 200 && IMAGE_STARTS.some((start) => data.startsWith(start)) ? images : texts).push(data);
    } else if (part instanceof Uint8Array) walk(Buffer.from(part).toString("base64"));
    else if (part && typeof part === "object") Object.values(part).forEach(walk);
  };
  walk(part);
  const text = texts.join("\n");
  return { text, images, error: error ?? text.replace(/[\s\\]/g, "").includes('"success":false') };
}
