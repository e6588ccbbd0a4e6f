/* Light or dark: the system's wish, unless the reader has chosen. Runs before anything is drawn. */
document.documentElement.dataset.theme = localStorage.getItem("sentinel-theme") ?? "system";
