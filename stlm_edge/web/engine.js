// The page's end of the worker: a task is asked for, and answered by a promise.

export class Engine {
  constructor(progress) {
    this.waiting = new Map();
    this.count = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      if (data.progress) return progress(data.progress);
      const { resolve, reject } = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      return data.problem ? reject(new Error(data.problem)) : resolve(data.answer);
    };
    this.worker.onerror = (event) => {
      event.preventDefault();
      const error = new Error(`the worker stopped (${event.message || "out of memory?"}); load the page again`);
      for (const { reject } of this.waiting.values()) reject(error);
      this.waiting.clear();
    };
  }

  ask(task, given = {}, transfer = []) {
    return new Promise((resolve, reject) => {
      const id = this.count++;
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, task, given }, transfer);
    });
  }
}
