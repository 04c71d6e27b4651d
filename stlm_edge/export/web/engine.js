// The page's end of the worker: a task is asked for, and answered by a promise.

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
      return data.problem ? reject(new Error(data.problem)) : resolve(data.answer);
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      // Without a message nothing of it has run.
      const why = event.message
        ? `the worker stopped (${event.message}); load the page again`
        : "worker.js, or a script that it needs, can't be loaded; copy the site again or export it anew";
      this.dead = new Error(why);
      for (const { reject } of this.waiting.values()) reject(this.dead);
      this.waiting.clear();
    };
  }

  ask(task, given = {}, transfer = []) {
    if (this.dead) return Promise.reject(this.dead);
    return new Promise((resolve, reject) => {
      const id = this.count++;
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, task, given }, transfer);
    });
  }
}
