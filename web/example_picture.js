// IPAdapter Example Picture shows the picture that is chosen, before any run.
import { app } from "../../scripts/app.js"

app.registerExtension({
    name: "ipadapter.examplePicture",
    nodeCreated(node) {
        const list = node.comfyClass === "IPAdapterExamplePicture" && node.widgets?.find((widget) => widget.name === "picture")
        if (!list) return
        const [frame, picture] = ["div", "img"].map((name) => document.createElement(name))
        frame.append(picture)
        Object.assign(frame.style, { position: "relative", height: "100%", minHeight: "80px" })
        Object.assign(picture.style, { position: "absolute", width: "100%", height: "100%", objectFit: "contain" })
        const shown = node.addDOMWidget("shown", "img", frame, { serialize: false, hideOnZoom: false, getMinHeight: () => 80 })
        shown.serialize = false
        const show = () => {
            picture.src = new URL(`./pictures/${list.value.replaceAll(" ", "_")}.webp`, import.meta.url).href
            picture.alt = list.value
        }
        const { callback } = list
        list.callback = function (...given) {
            show()
            return callback?.apply(this, given)
        }
        const { onConfigure } = node
        node.onConfigure = function (...given) {
            show()
            return onConfigure?.apply(this, given)
        }
        show()
    },
})
