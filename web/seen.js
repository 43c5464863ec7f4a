// Apply nodes show, small, what the encoder saw of their picture. The server sends it to the open editor alone; it is no output of the node.
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const SETTING = "IPAdapter.ShowWhatWasSeen"
const HEIGHT = 64 // at least: in a higher node the pictures are larger
const frames = new WeakMap() // node -> where its pictures are

/** The node that an id of the server means; inside of subgraphs it is a path such as 5:3. */
function nodeOf(id) {
    let graph = app.rootGraph ?? app.graph, node
    for (const part of String(id).split(":")) {
        node = graph?.getNodeById(Number(part))
        graph = node?.subgraph
    }
    return node?.comfyClass?.startsWith("IPA") ? node : undefined
}

function frameOf(node) {
    if (frames.has(node)) return frames.get(node)
    const [outside, frame] = ["div", "div"].map((name) => document.createElement(name))
    outside.append(frame)
    Object.assign(outside.style, { position: "relative", height: "100%", minHeight: `${HEIGHT}px` })
    Object.assign(frame.style, { position: "absolute", inset: 0, display: "flex" })
    const shown = node.addDOMWidget("seen", "img", outside, { serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT })
    shown.serialize = false
    frames.set(node, frame)
    return frame
}

function show({ display_node, output }) {
    const node = nodeOf(display_node)
    if (!node) return
    const pictures = output.images.map((image) => {
        const picture = Object.assign(new Image(), { alt: "what the encoder saw", src: api.apiURL(`/view?${new URLSearchParams(image)}`) })
        Object.assign(picture.style, { flex: "1 1 0", minWidth: 0, height: "100%", objectFit: "contain" })
        return picture
    })
    frameOf(node).replaceChildren(...pictures)
}

app.registerExtension({
    name: "ipadapter.seen",
    settings: [{
        id: SETTING,
        name: "Show on apply nodes what the encoder saw",
        tooltip: "After a run: the middle of the picture that counts, or the face that was found.",
        category: ["IPAdapter", "Nodes", "ShowWhatWasSeen"],
        type: "boolean",
        defaultValue: true,
    }],
    setup() {
        api.addEventListener("ipadapter.seen", ({ detail }) => {
            if (app.extensionManager.setting.get(SETTING)) show(detail)
        })
    },
})
