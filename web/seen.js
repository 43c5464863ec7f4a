// Apply nodes show what the encoder saw of their picture. The server sends it to the open editor alone; it is no output of the node.
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const SETTING = "IPAdapter.ShowWhatWasSeen"

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
            if (app.extensionManager.setting.get(SETTING)) api.dispatchCustomEvent("executed", detail)
        })
    },
})
