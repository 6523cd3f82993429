// Chromium starts no worker for a page that is read from the disk. There the site's search runs in a hidden frame instead, so that it
// works without a server. Zensical would load a script of this name from another host; it leaves that where one is given.
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.body.appendChild(document.createElement("iframe"))
      frame.hidden = true
      this.inner = frame.contentWindow
      // what the script says goes out, and is not heard by itself
      this.inner.postMessage = data => {
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        this.onmessage?.(event)
      }
      const script = this.inner.document.createElement("script")
      script.src = url
      this.started = new Promise(resolve => (script.onload = resolve))
      this.inner.document.body.append(script)
    }

    postMessage(data) {
      this.started.then(() => {
        const event = new this.inner.MessageEvent("message", { data })
        this.inner.dispatchEvent(event)
      })
    }

    terminate() {
      this.inner.frameElement.remove()
    }
  }
