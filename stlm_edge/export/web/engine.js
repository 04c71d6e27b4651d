// The page's end of the worker: sends tasks and returns promises of their results.

export class Engine {
  constructor(progress) {
    this.waiting = new Map();
    this.count = 0;
    this.dead = null;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      if (data.progress) return progress(data.progress);
      const { resolve, reject } = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      return data.problem ? reject(new Error(data.problem)) : resolve(data.result);
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      // Without a message, the script was not loaded.
      const why = event.message
        ? `the worker stopped (${event.message}); load the page again`
        : "worker.js, or a script that it needs, can't be loaded; copy the site again or export it again";
      this.dead = new Error(why);
      for (const { reject } of this.waiting.values()) reject(this.dead);
      this.waiting.clear();
    };
  }

  /** Run a task of worker.js. Rejects with an Error whose message is for the user. */
  run(task, given = {}, transfer = []) {
    if (this.dead) return Promise.reject(this.dead);
    return new Promise((resolve, reject) => {
      const id = this.count++;
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, task, given }, transfer);
    });
  }
}
