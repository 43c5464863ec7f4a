// Sliders for the layers of Image Prompt, among its advanced inputs. The text is what is saved and sent: a slider writes its part of
// the text, and the text moves the sliders. A name in brackets: only the model's base tells where that slider stands.
import { app } from "../../scripts/app.js"

const SLIDERS = ["down 1/1", "down 1/2", "down 1/4", "middle", "up 1/4", "up 1/2", "up 1/1"]
const EVEN = ["everything", "linear"]
const OF_UNETS = "A block of SD1.5, SDXL and Kolors. Flux and SD3.5 have other blocks: write their numbers into layers, such as double 0-5: 0.5."

const plain = (text) => text.toLowerCase().trim().replace(/\s+/g, " ").replace(/^mid\b/, "middle")
const parts = (text) => text.split(/[,\n]/).map((part) => part.trim()).filter(Boolean)
const nameOf = (part) => plain(part.slice(0, Math.max(0, part.lastIndexOf(":"))))

/** Whether a name of layers means a slider's block: true, false, or undefined where that depends on the base. */
function means(name, slider) {
    const [side, size] = slider.split(" ")
    const found = /^(down|up|middle)? ?(1\/\d+)?$/.exec(name)
    if (EVEN.includes(name)) return true
    if (!found) return name.startsWith("down") || name.startsWith("up") ? (name.startsWith(side) ? undefined : false) : undefined
    if ((found[1] ?? side) !== side) return false
    if (!found[2]) return true
    return size ? found[2] === size : undefined
}

/** Where each slider stands by the text; undefined where only the base tells. */
function stand(text) {
    if (text.trim().startsWith("{")) return SLIDERS.map(() => undefined)
    const listed = parts(text)
    const preset = listed.length && !listed[0].includes(":") ? plain(listed.shift()) : "everything"
    return SLIDERS.map((slider) =>
        listed.reduce((stands, part) => {
            const meant = means(nameOf(part), slider)
            return meant === false ? stands : meant ? Number(part.slice(part.lastIndexOf(":") + 1)) : undefined
        }, EVEN.includes(preset) ? 1 : undefined),
    )
}

/** The text with a slider's number, behind the others so that it counts. A scale dictionary is left as it is. */
function written(text, slider, number) {
    if (text.trim().startsWith("{")) return text
    return [...parts(text).filter((part) => nameOf(part) !== slider), `${slider}: ${number}`].join(", ")
}

function addSliders(node, text) {
    const follow = () =>
        stand(text.value).forEach((number, place) => {
            sliders[place].value = number ?? 1
            sliders[place].label = number === undefined ? `(${SLIDERS[place]})` : SLIDERS[place]
        })
    const write = (slider, number) => {
        text.value = written(text.value, slider, Math.round(number * 20) / 20)
        follow()
    }
    const size = [...node.size]
    const computeSize = () => [0, node.showAdvanced ? LiteGraph.NODE_WIDGET_HEIGHT : -4] // the canvas leaves room for folded ones: 4 more
    const sliders = SLIDERS.map((slider) => {
        const options = { min: 0, max: 2, step2: 0.05, precision: 2, serialize: false, advanced: true }
        const widget = node.addWidget("slider", slider, 1, (number) => write(slider, number), options)
        return Object.assign(widget, { serialize: false, advanced: true, computeSize, tooltip: OF_UNETS })
    })
    node.setSize(size) // each made room for itself before it was an advanced one
    for (const [owner, event] of [[text, "callback"], [node, "onConfigure"]]) {
        const before = owner[event]
        owner[event] = function (...given) {
            const answer = before?.apply(this, given)
            follow()
            return answer
        }
    }
    follow()
}

app.registerExtension({
    name: "ipadapter.sliders",
    nodeCreated(node) {
        const text = node.comfyClass === "ImagePrompt" && node.widgets?.find((widget) => widget.name === "layers")
        if (text) addSliders(node, text)
    },
})
