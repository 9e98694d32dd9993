/** The pack in ComfyUI's page: the sidebar tab with the panel, a command, a setting, word of trainings that ended. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addCurve } from "./comfyui/curve.js";
import { comfyHost } from "./comfyui/host.js";
import { NOTIFY, notices } from "./comfyui/notices.js";
import { refreshRows, rowsWidget } from "./comfyui/rows.js";

const TAB = "spectral-adapters";
const OPEN = "SpectralAdapters.OpenPanel";
const EVENT = "spectral_adapters";

/** The panel is loaded when the tab is first opened; each opening makes a new one, which finds its place again. */
async function show(container) {
  container.style.height = "100%";
  await import("./panel/panel.js");
  if (!container.isConnected || container.querySelector("spectral-panel")) return;
  const panel = document.createElement("spectral-panel");
  panel.host = comfyHost();
  container.append(panel);
}

function openPanel() {
  const tabs = app.extensionManager.sidebarTab;
  if (tabs.activeSidebarTabId !== TAB) tabs.toggleSidebarTab(TAB);
}

app.registerExtension({
  name: "SpectralAdapters.Training",
  settings: [
    {
      id: NOTIFY,
      name: "Tell me when a training ends",
      category: ["Spectral Adapters", "Training", "Notify"],
      type: "boolean",
      defaultValue: true,
      tooltip: "A short message in every open page, whichever tab is shown.",
    },
  ],
  commands: [{ id: OPEN, label: "Open the Spectral Adapters panel", icon: "pi pi-chart-line", function: openPanel }],
  menuCommands: [{ path: ["Extensions"], commands: [OPEN] }],
  getCustomWidgets: () => ({ SPECTRAL_ADAPTER_ROWS: rowsWidget }),
  refreshComboInNodes: refreshRows,
  nodeCreated: addCurve,
  setup() {
    app.extensionManager.sidebarTab.registerSidebarTab({
      id: TAB,
      icon: "pi pi-chart-line",
      title: "Spectral",
      tooltip: "Spectral Adapters: train on your pictures",
      type: "custom",
      render: show,
      // Taking it out of the page is what stops its questions to the server.
      destroy: () => document.querySelector("spectral-panel")?.remove(),
    });
    api.addEventListener(EVENT, notices());
  },
});
