/* German, of what manifest.json shows in Cockpit's menu. */
cockpit.locale({
    "": { "language": "de", "language-direction": "ltr", "plural-forms": n => n !== 1 },
    "VM energy": [null, "VM-Energie"],
});
