// The adapter list of Image Prompt Loader says what each file is. The labels come with the node's definition; what is saved is the file's name.
import { app } from "../../scripts/app.js"

const NODE = "ImagePromptLoader"
let labels = {}

function read(defs) {
    labels = defs[NODE]?.input?.required?.adapter?.[1]?.labels ?? labels
}

app.registerExtension({
    name: "ipadapter.labels",
    addCustomNodeDefs: read,
    refreshComboInNodes: read,
    nodeCreated(node) {
        const widget = node.comfyClass === NODE && node.widgets?.find((widget) => widget.name === "adapter")
        if (widget) widget.options.getOptionLabel = (name) => (labels[name] ? `${name} (${labels[name]})` : name ?? "")
    },
})
