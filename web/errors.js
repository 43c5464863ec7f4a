// The sentence of an error that the user can mend, in a toast: where it stands in newer editors is behind a button.
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const SHOWN_FOR = 30_000 // ms

app.registerExtension({
    name: "ipadapter.errors",
    setup() {
        api.addEventListener("execution_error", ({ detail }) => {
            if (detail.exception_type !== "IPAdapterError") return
            const summary = LiteGraph.registered_node_types[detail.node_type]?.title ?? detail.node_type
            app.extensionManager.toast.add({ severity: "error", summary, detail: detail.exception_message.trim(), life: SHOWN_FOR })
        })
    },
})
